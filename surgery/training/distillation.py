"""How far a model is from its teacher."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

LOGITS = ("causal-lm", "masked-lm", "seq2seq-lm", "classification")
"""Tasks whose first output is logits."""
MASKS = {"seq2seq-lm": "decoder_attention_mask", "classification": ""}
"""The input that says which positions of the first output are real, where it is not `attention_mask`."""
IGNORED = -100
"""The target that does not count."""
LEAST = 1e-12


def divergence(
    task: str | None, outputs: Any, taught: Any, inputs: Mapping[str, Any], targets: Tensor | None = None
) -> Tensor:
    """A scalar in float32 at least, over the first floating output; 0 where both say the same.

    The mean over positions that count where targets [N, T] tell them, over real tokens where the inputs do, else over
    rows, as `count` counts them; of logits of KL(teacher ‖ model), of anything else of the squared distance over the
    teacher's square.
    """
    ours, theirs = first_floating(outputs), first_floating(taught).detach()
    real = _real(task, inputs, targets)
    real = real.to(ours.device) if real is not None and ours.dim() == 3 and ours.shape[:2] == real.shape else None
    if real is not None and not bool(real.any()):
        return 0.0 * ours.sum()
    ours, theirs = (said[real] if real is not None else said for said in (ours, theirs))
    if task in LOGITS:
        each = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return each.mean()
    square = theirs.square().flatten(1).mean(1)
    return ((ours - theirs).square().flatten(1).mean(1) / square.clamp_min(LEAST)).mean()


def count(task: str | None, inputs: Mapping[str, Any], targets: Tensor | None = None) -> int:
    """Over how many tokens or rows `divergence` of a batch is a mean, so that batches can be put together."""
    real = _real(task, inputs, targets)
    if real is not None:
        return int(real.sum())
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim())


def _real(task: str | None, inputs: Mapping[str, Any], targets: Tensor | None) -> Tensor | None:
    """Which positions count, [N, T] bool; None where nothing tells."""
    if targets is not None and targets.dim() == 2:
        return targets != IGNORED
    told = inputs.get(MASKS.get(task, "attention_mask"))
    return None if told is None else told != 0


def first_floating(outputs: Any) -> Tensor:
    found = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return found if found.dtype.itemsize > 4 else found.float()
