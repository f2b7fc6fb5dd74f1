"""How far a model is from its teacher."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

LOGITS = ("causal-lm", "masked-lm", "seq2seq-lm", "classification")
"""Tasks whose first output is logits."""


def divergence(task: str | None, outputs: Any, taught: Any, inputs: Mapping[str, Any]) -> Tensor:
    """A scalar in float32 at least, over the first floating output and real tokens; 0 where both say the same.

    Of logits KL(teacher ‖ model), the mean over positions; of anything else the squared difference over the teacher's
    mean square.
    """
    ours, theirs = _first(outputs), _first(taught).detach()
    real = inputs.get("attention_mask")
    weights = torch.ones_like(ours[..., 0])
    if real is not None and ours.dim() == 3 and ours.shape[:2] == real.shape:
        weights = (real != 0).to(ours)
    if task in LOGITS:
        each = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return (each * weights).sum() / weights.sum()
    squares = (ours - theirs).square().mean(-1)
    return (squares * weights).sum() / (theirs.square().mean(-1) * weights).sum().clamp_min(1e-12)


def _first(outputs: Any) -> Tensor:
    found = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return found if found.dtype.itemsize > 4 else found.float()
