"""What a cut may look at beside the model's weights: the sampling schedule, data to calibrate on, and who watches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from surgery.anatomy.graphs import placeholders
from surgery.targets.losses import loss_of
from surgery.targets.schedule import Schedule

Progress = Callable[[str, int, int], None]
BATCH = 32
MASKS = ("attention_mask", "decoder_attention_mask")
"""The inputs by which a model is told which tokens are real; 0 is padding."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress of a run nobody watches."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs to calibrate on, in batches: iterating gives keyword inputs of the graph, options included.

    inputs   keyword tensors [N, ..], disjoint from what quality is measured on
    targets  the right classes, [N] or [N, T] int64, -100 where none counts
    options  what else the forward pass was captured with, by name, in its order: `use_cache` and the like
    task     "causal-lm", "masked-lm", "seq2seq-lm", "embedding", "classification" or None: which loss fits
    """

    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    targets: Tensor | None = None
    batch: int = BATCH

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (inputs for inputs, _ in self.batches())

    def batches(self) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
        """Pairs (keyword inputs, targets) of `batch` rows each, the last one of what is left."""
        for first in range(0, self.rows, self.batch):
            rows = slice(first, first + self.batch)
            given = {name: value[rows] for name, value in self.inputs.items()}
            named = {name: given.get(name, option) for name, option in self.options.items()}
            yield named | given, None if self.targets is None else self.targets[rows]

    def __len__(self) -> int:
        """Batches."""
        return -(-self.rows // self.batch)

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens(self) -> int:
        """Real tokens where the model is told of padding, else the entries of its first input's first two axes."""
        masks = [self.inputs[name] for name in MASKS if name in self.inputs]
        if masks:
            return int((masks[0] != 0).sum())
        first = next(iter(self.inputs.values()))
        return first.shape[0] * (first.shape[1] if first.dim() in (2, 3) else 1)

    def placed(self, graph_module: GraphModule, inputs: Mapping[str, Any]) -> dict[Node, Any]:
        """One batch's values by placeholder, on the device and in the dtype of the graph's weights."""
        like = next((p for p in graph_module.parameters() if p.is_floating_point()), torch.zeros(()))
        leaves = pytree.tree_leaves(dict(inputs))
        return {node: _fit(leaf, like) for node, leaf in zip(placeholders(graph_module), leaves, strict=True)}

    def loss(self, outputs: Any, inputs: Mapping[str, Any], targets: Tensor | None = None) -> Tensor:
        """A scalar, the mean over real tokens; see `surgery.targets.losses`."""
        return loss_of(self.task, outputs, inputs, targets)


@dataclass(frozen=True, eq=False)
class Context:
    """What a cut is chosen and made with.

    schedule     of a diffusion model, else None
    calibration  None where there is nothing to calibrate on
    progress     called with (stage, done, total); total 0 where it is not known
    """

    schedule: Schedule | None = None
    calibration: Calibration | None = None
    progress: Progress = silent


def _fit(leaf: Any, like: Tensor) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to(like.device, like.dtype if leaf.is_floating_point() else None)
