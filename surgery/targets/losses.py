"""The loss a calibration's task calls for, whose gradient says what matters."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

IGNORED = -100
"""The target that does not count."""


def loss_of(task: str | None, outputs: Any, inputs: Mapping[str, Any], targets: Tensor | None = None) -> Tensor:
    """A scalar, in float32 at least, of the first floating output.

    With targets, int64 per row [N] or output position [N, T]: mean cross-entropy where they count. Of "causal-lm"
    without them: mean cross-entropy of the next token, over tokens that are real and whose successor is. Else: mean
    squared output, over real tokens.
    """
    found = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    found = found if found.dtype.itemsize > 4 else found.float()
    real = inputs.get("attention_mask")
    if targets is None and task == "causal-lm" and isinstance(inputs.get("input_ids"), Tensor):
        targets = inputs["input_ids"] if real is None else inputs["input_ids"].masked_fill(real == 0, IGNORED)
        found, targets = found[:, :-1], targets[:, 1:]
    if targets is not None and found.shape[:-1] == targets.shape:
        wanted = targets.to(found.device).flatten()
        return F.cross_entropy(found.reshape(-1, found.shape[-1]), wanted, ignore_index=IGNORED)
    squares = found.square()
    if real is None or found.shape[:2] != real.shape:
        return squares.mean()
    weights = (real != 0).to(squares).reshape(*real.shape, *[1] * (found.dim() - 2))
    return (squares * weights).sum() / (weights.sum() * squares[0, 0].numel())


def weight_of(task: str | None, inputs: Mapping[str, Any], targets: Tensor | None = None) -> int:
    """Over how many entries the loss of a batch is a mean, so that batches can be put together."""
    real, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if targets is not None:
        return int((targets != IGNORED).sum())
    if task == "causal-lm" and isinstance(ids, Tensor):
        return int((real[:, 1:] != 0).sum()) if real is not None else ids[:, 1:].numel()
    if real is not None:
        return int((real != 0).sum())
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim())


def has_loss(task: str | None, targets: Tensor | None) -> bool:
    """Whether the loss says how well a model does, so that it is worth following down: a mean squared output does not."""
    return targets is not None or task == "causal-lm"
