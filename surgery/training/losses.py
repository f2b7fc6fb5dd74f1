"""The losses of a training: the data's, the divergence from the teacher, and what the graph adds as a penalty."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from surgery.training.distillation import divergence
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


@dataclass(frozen=True, eq=False)
class Losses:
    """Called with a module and a batch: the loss that is followed, the one that is measured (the data's, where it has
    a weight), and the penalty. A batch that `counts` for nothing, all padding, has a loss of 0 with a gradient of 0.
    """

    trainee: Trainee
    calibration: Calibration
    settings: Settings
    forward: Forward
    teacher: Callable[..., Any] | None

    def __call__(
        self, module: Callable[..., Any], inputs: dict[str, Any], targets: Tensor | None, counts: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        settings, given = self.settings, self._placed(inputs)
        with self._autocast():
            outputs, penalty = self.forward(module, given)
            taught = self._taught(given) if settings.distill else None
        if not counts:
            nothing = sum(leaf.sum() for leaf in pytree.tree_leaves(outputs) if _is_floating(leaf)) * 0.0
            return nothing, nothing, penalty
        data = self.calibration.loss(outputs, given, targets) if settings.data else None
        far = divergence(self.calibration.task, outputs, taught, given) if settings.distill else None
        parts = [part * weight for part, weight in ((data, settings.data), (far, settings.distill)) if part is not None]
        return sum(parts), far if data is None else data, penalty

    def averaged(self, module: Callable[..., Any], held_out: Calibration) -> tuple[float, float | None]:
        """Loss, over all that counts, and penalty, over rows, of held-out data."""
        total = paid = 0.0
        tokens = rows = 0
        known = False
        for inputs, targets in held_out.batches():
            count = self.calibration.weight(inputs, targets)
            length = next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim())
            _, measured, penalty = self(module, inputs, targets, bool(count))
            total, tokens = total + float(measured) * count, tokens + count
            known = penalty is not None
            paid, rows = paid + (float(penalty) * length if known else 0.0), rows + length
        return total / max(1, tokens), paid / rows if known else None

    @torch.no_grad()
    def _taught(self, given: dict[str, Any]) -> Any:
        return self.teacher(**given)

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device of the graph; floating inputs in the dtype the model stores."""
        like = next((p for p in self.trainee.original.parameters() if p.is_floating_point()), torch.zeros(()))

        def fit(leaf: Tensor) -> Tensor:
            return leaf.to(like.device, like.dtype if leaf.is_floating_point() else None)

        return pytree.tree_map_only(Tensor, fit, inputs)

    def _autocast(self) -> Any:
        if self.settings.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(next(iter(self.trainee.trained.values())).device.type, torch.bfloat16)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
