"""Train a zoo model: resumable to the bit, atomic, and stopped by the first number that is not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fit
from surgery.zoo.interrupt import deferred_interrupt
from surgery.zoo.recipe import Recipe
from surgery.zoo.store import load_state, save_state, save_weights

STATE_EVERY = 250
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Trainee:
    """A network in training: its weights, their moving average, the optimizer, and the steps done."""

    recipe: Recipe
    network: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def fresh(cls, recipe: Recipe) -> "Trainee":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            network = recipe.build()
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.training.rate, weight_decay=0.0, fused=True)
        average = {name: value.clone() for name, value in network.state_dict().items()}
        return cls(recipe, network, average, optimizer)

    @classmethod
    def resumed(cls, recipe: Recipe, tensors: dict[str, Tensor]) -> "Trainee":
        """Errors: S802 for a file that is no training state, S203 for the state of another model."""
        if "step" not in tensors:
            raise SurgeryError("the file to resume from is not a training state", code="S802", help="train afresh")
        trainee = cls.fresh(recipe)
        fit(trainee.network, _below("network.", tensors), recipe.name)
        trainee.average = _below("average.", tensors)
        trainee.step = int(tensors["step"])
        moments = {key: _below(f"optimizer.{key}.", tensors) for key in MOMENTS}
        for name, parameter in trainee.network.named_parameters():
            state = {key: values[name] for key, values in moments.items() if name in values}
            trainee.optimizer.state[parameter] = state
        return trainee

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as flat named tensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors | {"step": torch.tensor(self.step)}

    def advance(self, data: Any) -> float:
        """One step; returns its loss. Errors: S801 for a loss or gradient that is not finite, before anything changes."""
        plan = self.recipe.training
        loss = self.recipe.loss(self.network, data, plan.chance(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), plan.gradient_norm)
        value, norm = loss.item(), norm.item()
        if not math.isfinite(value + norm):
            raise SurgeryError(
                f"training {self.recipe.name} met a loss of {value} (gradient norm {norm}) at step {self.step}",
                code="S801",
                help="the last good state is kept; train afresh with a lower rate or another seed",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate_at(self.step)
        self.optimizer.step()
        self._update_average(plan.average_at(self.step))
        self.step += 1
        return value

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        current = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - decay)


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Trainee:
    """Train to `recipe.training.steps` and write the averaged weights to `out`; `progress(steps done, loss)`.

    What resuming needs is kept beside `out`, at `state_file(out)`: every 250 steps, and when Ctrl-C or a loss that is
    not finite ends the training early.
    """
    state = state_file(out)
    trainee = Trainee.resumed(recipe, load_state(state)) if resume else Trainee.fresh(recipe)
    data = recipe.training_data()
    trainee.network.train()
    with deferred_interrupt() as interrupted:
        try:
            while trainee.step < recipe.training.steps and not interrupted():
                loss = trainee.advance(data)
                if progress is not None:
                    progress(trainee.step, loss)
                if trainee.step % STATE_EVERY == 0:
                    save_state(state, trainee.state())
        except SurgeryError:
            save_state(state, trainee.state())
            raise
        save_state(state, trainee.state())
    if interrupted():
        raise KeyboardInterrupt
    save_weights(out, trainee.average, recipe.name, trainee.step)
    return trainee


def state_file(out: Path) -> Path:
    """Where the training that writes `out` keeps what resuming needs."""
    return out.with_name(out.name + ".state")


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
