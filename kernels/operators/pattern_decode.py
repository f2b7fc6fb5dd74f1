"""A few queries under `Rules`, behind keys that are kept: only the blocks they keep are read, copied side by side."""

import torch
from surgery.kernels.layouts.rules import Rules
from surgery.kernels.operators.pattern_layouts import LAYOUTS
from torch import Tensor

FEW = 16


def fits(q: Tensor, k: Tensor, rules: Rules) -> bool:
    """Whether all queries stand in one block row, behind older keys."""
    queries, keys = q.shape[2], k.shape[2]
    return 0 < queries <= FEW and queries < keys and (keys - queries) // rules.block == (keys - 1) // rules.block


def decode(
    q: Tensor, k: Tensor, v: Tensor, rules: Rules, hidden: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse [B, Hq, Sq]) with the softmax over kept keys; hidden: bool [B, Sk], keys that are padding.

    Reference: `surgery.kernels.reference.pattern_attention`.
    """
    batch, heads, queries, dim = q.shape
    keys, wide = k.shape[2], torch.promote_types(q.dtype, torch.float32)
    places, counts = LAYOUTS.row(rules, (keys - 1) // rules.block, -(-keys // rules.block))
    counts = counts & (places < keys)
    places = places.clamp(max=keys - 1)
    key, value = (_gathered(each, places, heads) for each in (k, v))
    scores = (q @ key.transpose(-1, -2)).to(wide) * scale
    seen = counts[:, None]
    if causal and queries > 1:
        seen = seen & (places[:, None] <= torch.arange(keys - queries, keys, device=q.device)[:, None])
    if hidden is not None:
        seen = seen & ~hidden.expand(batch, -1)[:, places][:, :, None]
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse.isinf(), 0).unsqueeze(-1)).exp()
    return (weights.to(q.dtype) @ value).contiguous(), lse


def _gathered(x: Tensor, places: Tensor, heads: int) -> Tensor:
    """[B, Hq, n, D]: rows of [B, Hkv, Sk, D] at each head's places [Hq, n]."""
    head = torch.arange(heads, device=x.device) // (heads // x.shape[1])
    return x[:, head[:, None], places]
