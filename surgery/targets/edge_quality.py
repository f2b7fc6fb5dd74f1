"""How good a graph is on calibration data: its loss, or how far its outputs are from the dense model's."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.targets.attention_mass import Run, batches
from surgery.targets.calibration import Calibration


class Quality:
    """`of` a graph is lower for a better one; `name` says what it is."""

    def __init__(self, dense: GraphModule, calibration: Calibration) -> None:
        self.calibration = calibration
        told = calibration.targets is not None or calibration.task == "causal-lm"
        self.name = "loss" if told else "output error"
        self.outputs = None if told else [_first(outputs) for outputs, *_ in self._runs(dense)]

    @torch.no_grad()
    def of(self, graph_module: GraphModule) -> float:
        """Mean loss over the data; or the squared difference to the dense outputs over their square."""
        if self.outputs is None:
            pairs = [
                (self.calibration.loss(outputs, inputs, targets), self.calibration.weight(inputs, targets))
                for outputs, inputs, targets in self._runs(graph_module)
            ]
            return float(sum(loss * weight for loss, weight in pairs)) / max(sum(weight for _, weight in pairs), 1)
        moved = whole = 0.0
        for dense, (outputs, *_) in zip(self.outputs, self._runs(graph_module), strict=True):
            moved += float((_first(outputs) - dense).square().sum())
            whole += float(dense.square().sum())
        return moved / max(whole, 1e-300)

    @torch.no_grad()
    def _runs(self, graph_module: GraphModule) -> Iterator[tuple[Any, dict[str, Any], Tensor | None]]:
        for inputs, targets in batches(self.calibration):
            yield Run(graph_module).values(self.calibration, inputs), inputs, targets


def _first(outputs: Any) -> Tensor:
    leaves = pytree.tree_leaves(outputs)
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()).double()
