"""Block-sparse attention, written plainly: softmax over the kept keys, S × S in memory, any floating dtype.

    s = scale · q kᵀ       p = exp(s - lse) where kept, else 0       lse = log Σ exp s over the kept       out = p v

q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D], query head h with key head h // (Hq // Hkv). Which pairs are kept is read from
the ten tensors of a `Blocks`. A query without a key has out 0, lse -inf and gradients 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_mask(layout: Sequence[Tensor], block: tuple[int, int], q: Tensor, k: Tensor) -> Tensor:
    """bool [1, 1, Sq, Sk], [1, Hq, Sq, Sk] or [B, Hq, Sq, Sk]: which pairs the layout keeps."""
    full_ptr, full_idx, part_ptr, part_idx, part_bits = layout[:5]
    batch, heads, queries, keys = *q.shape[:3], k.shape[2]
    block_rows, block_columns = -(-queries // block[0]), -(-keys // block[1])
    patterns = (full_ptr.numel() - 1) // max(block_rows, 1)
    kept = torch.zeros(patterns * block_rows, block_columns, *block, dtype=torch.bool, device=q.device)
    for row in range(patterns * block_rows):
        for place in range(int(full_ptr[row]), int(full_ptr[row + 1])):
            kept[row, int(full_idx[place])] = True
        for place in range(int(part_ptr[row]), int(part_ptr[row + 1])):
            kept[row, int(part_idx[place])] = _bits(part_bits[place], block[1])
    kept = kept.view(patterns, block_rows, block_columns, *block).transpose(2, 3)
    kept = kept.reshape(patterns, block_rows * block[0], block_columns * block[1])[:, :queries, :keys]
    return kept.view(*((1, patterns) if patterns in (1, heads) else (batch, heads)), queries, keys)


def _bits(words: Tensor, width: int) -> Tensor:
    """bool [BM, width]: bit j of word w is column 32 w + j."""
    column = torch.arange(width, device=words.device)
    return (words[:, column // 32] >> (column % 32)) & 1 != 0


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale · q kᵀ, [B, Hq, Sq, Sk]."""
    return q @ spread(k, q).transpose(-1, -2) * scale


def spread(k: Tensor, q: Tensor) -> Tensor:
    """Keys (or values) repeated for every query head."""
    return k.repeat_interleave(q.shape[1] // k.shape[1], 1)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of lse: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], block: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse [B, Hq, Sq])."""
    kept = keep_mask(layout, block, q, k)
    masked = scores(q, k, scale).to(statistics_dtype(q.dtype)).masked_fill(~kept, float("-inf"))
    lse = masked.logsumexp(-1)
    weights = (masked - lse.nan_to_num(neginf=0.0).unsqueeze(-1)).exp()
    return (weights.to(v.dtype) @ spread(v, q)).contiguous(), lse.contiguous()


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: Sequence[Tensor], block: tuple[int, int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) = (scale · ds k, scale · dsᵀ q, pᵀ dout), ds = p ∘ (dout vᵀ - Σ out ∘ dout + dlse)."""
    kept, exact = keep_mask(layout, block, q, k), statistics_dtype(q.dtype)
    finite = lse.nan_to_num(neginf=0.0).unsqueeze(-1)
    weights = (scores(q, k, scale).to(exact) - finite).exp().masked_fill(~kept, 0.0)
    delta = (out.to(exact) * grad_out.to(exact)).sum(-1, keepdim=True)
    delta = delta if grad_lse is None else delta - grad_lse.unsqueeze(-1)
    slopes = weights * ((grad_out @ spread(v, q).transpose(-1, -2)).to(exact) - delta)
    slopes, weights = slopes.to(q.dtype), weights.to(q.dtype)
    dq = slopes @ spread(k, q) * scale
    dk = slopes.transpose(-1, -2) @ q * scale
    dv = weights.transpose(-1, -2) @ grad_out
    groups = (q.shape[0], k.shape[1], -1, *k.shape[2:])
    return dq.contiguous(), dk.view(groups).sum(2), dv.view(groups).sum(2)
