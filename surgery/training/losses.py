"""The losses of a training: the data's, the divergence from the teacher, and what the graph adds as a penalty."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surgery.anatomy.placement import fitted
from surgery.training.distillation import count, divergence, first_floating
from surgery.training.examples import Calibration
from surgery.training.settings import Settings
from surgery.training.trainee import Trainee

Forward = Callable[[Callable[..., Any], dict[str, Any]], tuple[Any, Tensor | None]]


def plain(module: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, None]:
    """The forward pass of a graph that returns no penalty."""
    return module(**inputs), None


def penalized(module: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, Tensor]:
    """The forward pass of a graph that returns (outputs, penalty)."""
    outputs, penalty = module(**inputs)
    return outputs, penalty


class Parts(NamedTuple):
    """Scalars, means over what `Micro` counts; None for what has no weight, or for a graph without a penalty."""

    data: Tensor | None
    taught: Tensor | None
    penalty: Tensor | None


@dataclass(frozen=True, eq=False)
class Losses:
    """Called with a module and a batch. A batch that counts for nothing, all padding, has a loss of 0."""

    trainee: Trainee
    calibration: Calibration
    settings: Settings
    forward: Forward
    teacher: Callable[..., Any] | None

    def __call__(self, module: Callable[..., Any], inputs: dict[str, Any], targets: Tensor | None) -> Parts:
        settings, given = self.settings, fitted(self.trainee.original, inputs)
        with self._autocast():
            outputs, penalty = self.forward(module, given)
            taught = self._taught(given) if settings.distill else None
        data = far = None
        if settings.data:
            counts = self.calibration.weight(inputs, targets)
            data = self.calibration.loss(outputs, given, targets) if counts else 0.0 * first_floating(outputs).sum()
        if settings.distill:
            far = divergence(self.calibration.task, outputs, taught, given, targets)
        return Parts(data, far, penalty)

    def followed(self, parts: Parts, tokens: float = 1.0, taught: float = 1.0) -> Tensor:
        """The weighted sum of data loss and divergence, each times a batch's share of a step."""
        shares = ((parts.data, self.settings.data * tokens), (parts.taught, self.settings.distill * taught))
        return sum(part * share for part, share in shares if part is not None)

    def measured(self, parts: Parts, tokens: float, taught: float) -> float:
        """The data's loss, or where that has no weight the divergence, times what it is weighted with."""
        return float(parts.taught.detach()) * taught if parts.data is None else float(parts.data.detach()) * tokens

    def averaged(self, module: Callable[..., Any], held_out: Calibration) -> tuple[float, float | None]:
        """What is measured, over all that counts, and the penalty, over rows, of held-out data."""
        total = paid = 0.0
        counted = rows = 0
        known = False
        for inputs, targets in held_out.batches():
            tokens, taught = self.calibration.weight(inputs, targets), count(self.calibration.task, inputs, targets)
            length = next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim())
            parts = self(module, inputs, targets)
            total += self.measured(parts, tokens, taught)
            counted += tokens if self.settings.data else taught
            known = parts.penalty is not None
            paid, rows = paid + (float(parts.penalty) * length if known else 0.0), rows + length
        return total / max(1, counted), paid / rows if known else None

    @torch.no_grad()
    def _taught(self, given: dict[str, Any]) -> Any:
        return self.teacher(**given)

    def _autocast(self) -> Any:
        if self.settings.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(next(iter(self.trainee.trained.values())).device.type, torch.bfloat16)
