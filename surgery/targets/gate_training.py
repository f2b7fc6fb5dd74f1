"""Training gates: the fewest edges at a loss that the dense model's allows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import attribute
from surgery.anatomy.placement import device_of, fitted
from surgery.passes.gate_edges import Gate
from surgery.passes.runner import run_passes
from surgery.passes.sample_gates import SampleGates, seed_name
from surgery.targets.calibration import Calibration
from surgery.targets.context import Context
from surgery.targets.losses import has_loss
from surgery.training.engine import penalized, train
from surgery.training.examples import Examples
from surgery.training.objective import Constrained, Evaluated
from surgery.training.settings import Settings
from surgery.training.trained import Trained

BATCH = 16
BIAS_RATE = 10.0
"""Times the learning rate: a bias has to cross several units, far more than a weight, for a head to close or to be picky."""
MARGIN = 0.8
"""Of the share that is asked for: what is expected while gates are sampled is near what they keep, not equal to it."""


@dataclass(eq=False)
class Aimed(Constrained):
    """As Constrained, with an aim and for rows that are soon known by heart.

    Among states that keep no more than `aim` of the edges the lowest loss is best. From half of `steps` on, what counts
    against the target is the loss of a step plus `gap`: by how much rows that only judge, under gates without noise, lost
    more than those that trained when last looked at. Else a model that learns its rows by heart would buy sparsity with a
    loss that no other row has. Before, gates are undecided, and their noise is most of that difference.
    """

    aim: float = 0.0
    room: float = 0.1
    steps: int = 0
    done: int = 0
    recent: float | None = None
    gap: float = 0.0

    @property
    def GAIN(self) -> float:  # noqa: N802
        """A violation as large as what is allowed moves the multiplier as fast as it goes, whatever a loss is counted in."""
        return min(100.0, max(10.0, 1 / self.room)) if self.room > 0 else 100.0

    def update(self, loss: float, penalty: float | None) -> None:
        self.recent = loss if self.recent is None else self.MEMORY * self.recent + (1 - self.MEMORY) * loss
        self.done += 1
        super().update(loss + (self.gap if 2 * self.done >= self.steps else 0.0), penalty)

    def feasible(self, loss: float) -> bool:
        self.gap = 0.0 if self.recent is None else max(0.0, loss - self.recent)
        return super().feasible(loss)

    def better(self, one: Evaluated, best: Evaluated) -> bool:
        if one.feasible and best.feasible and max(one.penalty, best.penalty) <= self.aim:
            return one.loss < best.loss
        return super().better(one, best)

    def state(self) -> dict[str, float]:
        return super().state() | {"recent": self.recent, "gap": self.gap, "done": self.done}

    def load(self, state: dict[str, float]) -> None:
        super().load(state)
        self.recent, self.gap, self.done = state["recent"], state["gap"], state["done"]

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"aim": self.aim}


@dataclass(frozen=True, eq=False)
class BesideDense(Calibration):
    """The same data, whose loss is told as the dense model's mean plus what a batch loses over the dense model on it.

    Gradients are those of the loss itself, and so is the mean over all rows; but the constraint is not moved by how hard
    the rows of a batch are, nor by how the rows that train differ from those that judge.
    """

    teacher: GraphModule | None = None
    dense: float = 0.0
    narrow: bool = False

    def loss(self, outputs: Any, inputs: Mapping[str, Any], targets: Tensor | None = None) -> Tensor:
        own = super().loss(outputs, inputs, targets)
        return own - _dense_loss(self.teacher, super().loss, inputs, targets, self.narrow) + self.dense


@dataclass(frozen=True, eq=False)
class GateTraining:
    """What came of it: `dense` is the dense model's loss on the rows that judge, `target` what was allowed."""

    trained: Trained
    dense: float
    target: float
    taught: bool


def train_gates(
    graph_module: GraphModule, gates: Sequence[Gate], operation: Any, context: Context, clause: str, place: str
) -> GateTraining:
    """Train a graph with gates at these sites; the graph given is left as it was, and is the teacher where one is asked for.

    Where the dense model is followed, or data has no loss, the loss is the divergence from its outputs: 0 for itself, and
    without the noise of what happens to come next. As much of it is allowed as the loss of the data may rise.
    Raises SurgeryError (S812, S814), KeyboardInterrupt.
    """
    calibration = context.calibration
    learnable = has_loss(calibration.task, calibration.targets)
    taught = not learnable or followed(operation) == "dense"
    settings = _settings(operation, context, clause, place, taught)
    dense = _loss(graph_module, calibration, settings) if learnable else 0.0
    target = allowed_loss(operation.tolerance, dense)
    if taught:
        dense, target = 0.0, target - dense
    aim = aimed(operation)
    if not taught:
        own = {field.name: getattr(calibration, field.name) for field in fields(calibration)}
        calibration = BesideDense(**own, teacher=graph_module, dense=dense, narrow=settings.precision == "bfloat16")
    sample = SampleGates(clause, place, tuple(gates), normalize_of(operation), MARGIN * aim)
    trained = train(
        run_passes(graph_module, [sample]),
        calibration,
        settings,
        Aimed(target, aim=aim, room=target - dense, steps=settings.steps),
        teacher=graph_module if settings.distill else None,
        before_step=partial(_draw, operation.seed, [seed_name(gate) for gate in gates]),
        forward=penalized,
        progress=context.progress,
        whole=[gate.tensor for gate in gates],
        scales={gate.tensor: BIAS_RATE for gate in gates},
        what="training gates",
    )
    return GateTraining(trained, dense, target, taught)


def followed(operation: Any) -> str:
    """Only the dense model itself has its outputs: where nothing may change, it is the loss of the data that can stay."""
    if operation.follow != "auto":
        return operation.follow
    return "dense" if operation.tolerance.value else "data"


def allowed_loss(tolerance: Any, dense: float) -> float:
    """`1%` of the dense model's loss more, or nats more; of a divergence, which is 0 for the dense model, the share itself."""
    if tolerance.measure == "share":
        return dense * (1 + tolerance.value) if dense else tolerance.value
    return dense + tolerance.value


def aimed(operation: Any) -> float:
    """The share of edges that may stay; 0 where as few as possible shall."""
    requested = requested_of(operation)
    return 0.0 if requested is None else 1.0 - requested


def requested_of(operation: Any) -> float | None:
    """0.996 of `99.6%`."""
    fraction = None if operation.share is None else operation.share.fraction
    return None if fraction is None else float(fraction)


def normalize_of(operation: Any) -> str:
    return "all" if operation.normalize == "auto" else operation.normalize


def _settings(operation: Any, context: Context, clause: str, place: str, taught: bool) -> Settings:
    name = hashlib.sha256(f"{place} {clause}".encode()).hexdigest()[:8]
    distill = operation.distill or (1.0 if taught else 0.0)
    return Settings(
        steps=operation.steps,
        rate=operation.lr,
        batch=operation.batch or max(BATCH, operation.accumulate),
        accumulate=operation.accumulate,
        precision=operation.precision,
        lora=operation.lora,
        seed=operation.seed,
        data=0.0 if taught else 1.0,
        distill=distill,
        checkpoint=None if context.checkpoints is None else context.checkpoints / f"gates-{name}",
    )


def _loss(graph_module: GraphModule, calibration: Calibration, settings: Settings) -> float:
    """The dense model's, on the rows that judge and in the precision of the training."""
    narrow = settings.precision == "bfloat16"
    total, counted = 0.0, 0
    for inputs, targets in Examples(calibration, replace(settings, checkpoint=None)).held_out().batches():
        count = calibration.weight(inputs, targets)
        if count:
            given = fitted(graph_module, inputs)
            total += float(_dense_loss(graph_module, calibration.loss, given, targets, narrow)) * count
            counted += count
    return total / max(1, counted)


@torch.no_grad()
def _dense_loss(
    graph_module: GraphModule, loss: Callable, inputs: Mapping[str, Any], targets: Tensor | None, narrow: bool
) -> Tensor:
    with torch.autocast(device_of(graph_module).type, torch.bfloat16) if narrow else nullcontext():
        outputs = graph_module(**inputs)
    return loss(outputs, inputs, targets)


def _draw(seed: int, names: Sequence[str], module: GraphModule, step: int, micro: int) -> None:
    """Every site's noise of a pass; none where nothing is learned."""
    for place, name in enumerate(names):
        number = -1 if micro < 0 else (((seed * 1_000_003 + step) * 1009 + micro) * 1009 + place) % (1 << 62)
        attribute(module, name).fill_(number)
