"""Data to calibrate on, in batches, as a captured graph takes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from surgery.anatomy.graphs import placeholders, shape
from surgery.anatomy.placement import fitted
from surgery.targets.losses import IGNORED, loss_of, weight_of

BATCH = 32
MASKS = ("attention_mask", "decoder_attention_mask")
"""The inputs by which a model is told which tokens are real; 0 is padding."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs to calibrate on; iterating gives keyword inputs of the graph, batch by batch, options included.

    inputs   keyword tensors [N, ..], disjoint from what quality is measured on
    options  what else the forward pass was captured with, by name, in its order: `use_cache` and the like
    task     "causal-lm", "masked-lm", "seq2seq-lm", "embedding", "classification" or None: which loss fits
    targets  the right classes, [N] or [N, T] int64, -100 where none counts
    free     whether the graph takes any length: padding that all rows of a batch share is then left out
    """

    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    targets: Tensor | None = None
    free: bool = False
    batch: int = BATCH

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (inputs for inputs, _ in self.batches())

    def batches(self) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
        """Pairs (keyword inputs, targets) of `batch` rows, the last of what is left; rows of like length together."""
        for rows in self._order().split(self.batch):
            end = self._end(rows)
            given = {name: value[rows][:, :end] if end else value[rows] for name, value in self.inputs.items()}
            named = {name: given.get(name, option) for name, option in self.options.items()}
            yield named | given, None if self.targets is None else self._cut(self.targets[rows], end)

    def __len__(self) -> int:
        """Batches."""
        return -(-self.rows // self.batch)

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens(self) -> int:
        """Real tokens where the model is told of padding, else the entries of its first input's first two axes."""
        if MASKS[0] in self.inputs:
            return int((self.inputs[MASKS[0]] != 0).sum())
        first = next(iter(self.inputs.values()))
        return first.shape[0] * (first.shape[1] if first.dim() in (2, 3) else 1)

    def placed(self, graph_module: GraphModule, inputs: Mapping[str, Any]) -> dict[Node, Any]:
        """One batch's values by placeholder, on the device and in the dtype of the graph's weights."""
        leaves = pytree.tree_leaves(fitted(graph_module, inputs))
        return dict(zip(placeholders(graph_module), leaves, strict=True))

    def loss(self, outputs: Any, inputs: Mapping[str, Any], targets: Tensor | None = None) -> Tensor:
        """A scalar, the mean over real tokens; see `surgery.targets.losses`."""
        return loss_of(self.task, outputs, inputs, targets)

    def weight(self, inputs: Mapping[str, Any], targets: Tensor | None = None) -> int:
        """Over how many entries `loss` of a batch is a mean."""
        return weight_of(self.task, inputs, targets)

    def next_tokens(self) -> Tensor | None:
        """The targets that "causal-lm" implies, written out [N, T]: the next token, IGNORED where there is none or it
        is padding; None for another task."""
        ids = self.inputs.get("input_ids")
        if self.task != "causal-lm" or ids is None:
            return None
        real = self.inputs.get(MASKS[0], torch.ones_like(ids))
        held = ids.masked_fill(real == 0, IGNORED)
        return torch.cat([held[:, 1:], torch.full_like(held[:, :1], IGNORED)], 1)

    @property
    def _shrinks(self) -> bool:
        """Whether padding can be left out: all inputs are [N, T] of one T, and a mask tells what is real."""
        shapes = {tuple(value.shape[1:]) for value in self.inputs.values()}
        return self.free and MASKS[0] in self.inputs and len(shapes) == 1 and len(*shapes) == 1

    def _ends(self) -> Tensor:
        """Behind the last real token of each row [N]."""
        mask = self.inputs[MASKS[0]] != 0
        return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1)

    def _order(self) -> Tensor:
        return self._ends().sort(stable=True).indices if self._shrinks else torch.arange(self.rows)

    def _end(self, rows: Tensor) -> int:
        return max(2, int(self._ends()[rows].max())) if self._shrinks else 0

    def _cut(self, targets: Tensor, end: int) -> Tensor:
        """Targets per position lose what the inputs lose, which never counts."""
        per_position = end and targets.dim() > 1 and targets.shape[1:] == self.inputs[MASKS[0]].shape[1:]
        return targets[:, :end] if per_position and bool((targets[:, end:] == IGNORED).all()) else targets


def any_length(graph_module: GraphModule) -> bool:
    """Whether every [batch, length] input of a graph is of free length."""
    sizes = [found for found in map(shape, placeholders(graph_module)) if found and len(found) > 1]
    return bool(sizes) and not any(isinstance(found[1], int) for found in sizes)
