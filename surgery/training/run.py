"""A training under way: its steps, its evaluations, and what is kept."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.diagnostics import SurgeryError
from surgery.training.checkpoint import Checkpoint, is_finite, read, write
from surgery.training.examples import Calibration, Examples, Micro
from surgery.training.losses import Losses
from surgery.training.moments import gathered, restored
from surgery.training.objective import Evaluated, Objective
from surgery.training.processes import Processes, count, place
from surgery.training.settings import Settings
from surgery.training.trained import FINISHED, Trained
from surgery.training.trainee import Trainee

EVALUATION = -1
"""The number of a micro-batch in which nothing is learned."""
STOPPED = "S811"

BeforeStep = Callable[[GraphModule, int, int], None]
Evaluate = Callable[[GraphModule, Calibration], tuple[float, float | None]]
Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class Run:
    """A training under way; `step` are steps done."""

    trainee: Trainee
    calibration: Calibration
    settings: Settings
    objective: Objective
    losses: Losses
    before_step: BeforeStep
    evaluate: Evaluate | None
    identity: dict[str, Any]
    step: int = 0
    state: str = FINISHED
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spent: float = 0.0

    def begin(self, scales: Mapping[str, float]) -> None:
        """Everything that is the same in a fresh and in a resumed training, then the checkpoint, if there is one."""
        self.notes += self.trainee.notes
        self.examples = Examples(self.calibration, self.settings, place(), count())
        if self.examples.batch < self.settings.batch:
            self.notes.append(f"a step has {self.examples.batch} rows: the calibration data has no more to train on")
        found = read(self.settings.checkpoint, self.identity) if self.settings.checkpoint else None
        self._drop_unreached()
        self.processes = Processes.around(self.trainee.module, self.trainee.trained, self.settings.shard)
        self.processes.agree(found.told["step"] if found else 0, self.identity)
        self.trained = self.processes.trained
        self.optimizer = self._optimizer(scales)
        self.since = time.monotonic()
        if found:
            self._resume(found)
        else:
            self.start = self.best = self._evaluated()
            self.kept = self._copied()
            if not math.isfinite(self.start.loss):
                self._stop(f"a held-out loss of {self.start.loss:.4g}")

    def go(self, interrupted: Callable[[], bool], progress: Progress, what: str) -> None:
        settings = self.settings
        while self.step < settings.steps and self.state == FINISHED:
            row = self._advance(interrupted())
            if row is None:
                break
            if self.step % settings.evaluations == 0 or self.step == settings.steps:
                self._judge(row)
            self.history.append(row)
            progress(f"{what}: {line(row, self.best, self.objective)}", self.step, settings.steps)
            stop = row.pop("interrupted")
            due = self.step % settings.checkpoint_every == 0 or self.step == settings.steps or stop
            if due and self.state == FINISHED:
                self._save()
            if stop:
                raise KeyboardInterrupt(self._how_to_go_on(what))

    def result(self) -> Trained:
        whole = {name: self.processes.whole(value) for name, value in self.kept.items()}
        notes = tuple(self.notes)
        return Trained(self.trainee.weights(whole), tuple(self.history), self.start, self.best, self.state, notes)

    def _advance(self, pressed: bool) -> dict[str, Any] | None:
        """One step, and its row of the history; None where a number is not finite, and nothing changed."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.step) * group["scale"]
        rate = self.settings.rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = penalty = 0.0
        known = False
        micros = self.examples.step(self.step)
        for index, micro in enumerate(micros):
            with self.processes.passing(last=index == len(micros) - 1):
                learned, measured, paid = self._pass(micro, place() * len(micros) + index)
                (self.processes.world * learned).backward()
            loss, known = loss + measured, paid is not None
            penalty += paid or 0.0
        self.processes.gather_gradients()
        world = self.processes.world
        loss, penalty, stop = self.processes.mean([loss * world, penalty * world, float(pressed)])
        norm = self._clipped()
        if not math.isfinite(loss + penalty + norm):
            self._stop(f"a loss of {loss:.4g} and a gradient of {norm:.4g}")
            self._save()
            return None
        self.optimizer.step()
        self.objective.update(loss, penalty if known else None)
        self.step += 1
        row = {"step": self.step, "loss": loss, **({"penalty": penalty} if known else {})}
        return row | self.objective.told() | {"rate": rate, "seconds": self._seconds(), "interrupted": stop > 0}

    def _pass(self, micro: Micro, number: int) -> tuple[Tensor, float, float | None]:
        """What is followed, the data's loss and the penalty of one micro-batch, each times its share of the step."""
        self.before_step(self.trainee.module, self.step, number)
        parts = self.losses(self.processes.called, micro.inputs, micro.targets)
        paid = None if parts.penalty is None else parts.penalty * micro.rows
        learned = self.objective.total(self.losses.followed(parts, micro.tokens, micro.taught), paid)
        measured = self.losses.measured(parts, micro.tokens, micro.taught)
        return learned, measured, None if paid is None else float(paid.detach())

    @torch.no_grad()
    def _evaluated(self) -> Evaluated:
        held_out = self.examples.held_out()
        self.before_step(self.trainee.module, self.step, EVALUATION)
        judge = self.evaluate or self.losses.averaged
        with self.processes.passing(last=True):
            loss, penalty = judge(self.trainee.module, held_out)
        loss, extra = self.processes.mean([loss, 0.0 if penalty is None else penalty])
        return Evaluated(self.step, loss, None if penalty is None else extra, self.objective.feasible(loss))

    def _judge(self, row: dict[str, Any]) -> None:
        """Evaluate the state behind a step, and keep it where it is the best yet."""
        found = self._evaluated()
        if not math.isfinite(found.loss):
            self._stop(f"a held-out loss of {found.loss:.4g}")
            return
        row |= {"held_out_loss": found.loss, "feasible": found.feasible}
        row |= {} if found.penalty is None else {"held_out_penalty": found.penalty}
        if self.objective.better(found, self.best):
            self.best, self.kept = found, self._copied()

    def _stop(self, met: str) -> None:
        self.state = f"stopped: {met} at step {self.step}"
        self.notes.append(
            f"training stopped at step {self.step} of {self.settings.steps}, where it met {met} ({STOPPED}); "
            f"what is kept is the state of step {self.best.step}"
        )

    def _clipped(self) -> float:
        most = self.settings.gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), most)
        return float(self.processes.whole(norm))

    def _optimizer(self, scales: Mapping[str, float]) -> torch.optim.AdamW:
        """Weights decay, vectors do not."""
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.trained.items():
            decay = self.settings.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
        fused = all(value.device.type in ("cpu", "cuda") for value in self.trained.values())
        return torch.optim.AdamW(
            [{"params": those, "scale": scale, "weight_decay": decay} for (scale, decay), those in groups.items()],
            lr=self.settings.rate,
            fused=fused,
        )

    def _drop_unreached(self) -> None:
        """What the loss does not depend on is not trained: DDP would wait for its gradient."""
        micro = self.examples.step(0)[0]
        self.before_step(self.trainee.module, 0, 0)
        parts = self.losses(self.trainee.module, micro.inputs, micro.targets)
        total, trained = self.objective.total(self.losses.followed(parts), parts.penalty), self.trainee.trained
        slopes: Any = [None] * len(trained)
        if total.requires_grad:
            slopes = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        left = [name for name, slope in zip(trained, slopes, strict=True) if slope is None]
        if len(left) == len(trained):
            raise SurgeryError(
                "the loss depends on nothing that could be trained",
                code="S814",
                help="name other data, or train all weights: lora=0",
            )
        for name in left:
            trained.pop(name).requires_grad_(False)
        if left:
            self.notes.append(f"{len(left)} tensors stay as they are: the loss does not depend on {_named(left)}")

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.trained.items()}

    def _save(self) -> None:
        """What is resumed from: nothing before the first step, and nothing where a number is not finite."""
        if self.settings.checkpoint is None or self.step == 0:
            return
        told = {"step": self.step, "history": self.history}
        told |= {"start": self.start.document(), "best": self.best.document()}
        told |= {"objective": self.objective.state(), "seconds": self._seconds()}
        tensors = gathered(self.processes, self.trained, self.kept, self.optimizer)
        if place() == 0 and is_finite(tensors):
            write(self.settings.checkpoint, Checkpoint(tensors, told), self.identity)
        self.processes.agree(self.step, {})  # nobody reads what is not written yet

    def _resume(self, found: Checkpoint) -> None:
        self.kept = restored(self.processes, self.trained, self.optimizer, found)
        self.start, self.best = Evaluated(**found.told["start"]), Evaluated(**found.told["best"])
        self.history, self.step, self.spent = found.told["history"], found.told["step"], found.told["seconds"]
        self.objective.load(found.told["objective"])

    def _seconds(self) -> float:
        return round(self.spent + time.monotonic() - self.since, 3)

    def _how_to_go_on(self, what: str) -> str:
        met = f"{what} was interrupted at step {self.step} of {self.settings.steps}"
        if self.settings.checkpoint:
            return f"{met}; run the same again to go on from there"
        return f"{met}; nothing is kept, as no folder for checkpoints was named: `--checkpoints FOLDER`"


def line(row: Mapping[str, Any], best: Evaluated, objective: Objective) -> str:
    """A row of the history for a progress bar: "loss 0.0123 of 0.0142 · edges 0.41% · multiplier 1.20 · best …"."""
    target = getattr(objective, "target", None)
    parts = [f"loss {row['loss']:.4f}" + ("" if target is None else f" of {target:.4f}")]
    parts += [f"{objective.penalty} {row['penalty']:.2%}"] if "penalty" in row else []
    parts += [f"multiplier {row['multiplier']:.2f}"] if "multiplier" in row else []
    held = f"{best.loss:.4f}" if best.penalty is None else f"{best.penalty:.2%} at {best.loss:.4f}"
    parts.append(f"best {held}, step {best.step}" if best.feasible else "not within the target yet")
    return " · ".join(parts)


def _named(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:3]) + (" and others" if len(names) > 3 else "")
