"""Attention under `Rules`, in plain PyTorch, a few hundred queries at a time: the semantics, and the way for any mask.

    s = scale · q kᵀ over the keys seen      p = exp(s - lse)      out = (p · kept) v

kept is what the rules keep; lse is over kept keys (normalize="kept") or over all seen (normalize="all").
"""

from collections.abc import Iterator

import torch
from surgery.kernels.layouts.rules import Rules
from torch import Tensor

ROWS = 512
"""Queries at a time: memory is this many rows of scores."""
HIDDEN = -1e4
"""What an added mask hides a key with is at or below this."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, rules: Rules, mask: Tensor | None, causal: bool, scale: float, normalize: str
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse [B, Hq, Sq]). mask: bool or added, to be broadcast over [B, Hq, Sq, Sk], or None; one that
    is given holds causality too."""
    outs, sums = [], []
    for rows, scores, kept in _scores(q, k, rules, mask, causal, scale):
        lse = _seen(scores, kept, normalize).logsumexp(-1)
        weights = (scores - lse.masked_fill(lse.isinf(), 0).unsqueeze(-1)).exp().masked_fill(~kept, 0)
        outs.append(_join(weights, v))
        sums.append(lse)
    if not outs:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_wide(q))
    return torch.cat(outs, 2).to(q.dtype), torch.cat(sums, 2)


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    rules: Rules, mask: Tensor | None, causal: bool, scale: float, normalize: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv), shaped as q, k and v."""
    wide, group = _wide(q), q.shape[1] // k.shape[1]
    grad, dk, dv = grad_out.to(wide), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    delta, dqs = (grad * out.to(wide)).sum(-1, keepdim=True), []
    delta = delta if grad_lse is None else delta - grad_lse.masked_fill(lse.isinf(), 0).to(wide).unsqueeze(-1)
    for rows, scores, kept in _scores(q, k, rules, mask, causal, scale):
        level = lse[:, :, rows].masked_fill(lse[:, :, rows].isinf(), 0).unsqueeze(-1)
        seen = (_seen(scores, kept, normalize) - level).exp()
        kept_weights = seen.masked_fill(~kept, 0)
        towards = grad[:, :, rows] @ _repeated(v, group).transpose(-1, -2)
        ds = (kept_weights * towards - seen * delta[:, :, rows]) * scale
        dqs.append(ds @ _repeated(k, group))
        dk += _grouped(ds.transpose(-1, -2) @ q[:, :, rows].to(wide), group)
        dv += _grouped(kept_weights.transpose(-1, -2) @ grad[:, :, rows], group)
    dq = torch.cat(dqs, 2) if dqs else torch.zeros_like(q)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _scores(
    q: Tensor, k: Tensor, rules: Rules, mask: Tensor | None, causal: bool, scale: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Per run of queries: which, their scores over the keys seen, -inf elsewhere, and what is kept of these."""
    queries, keys = q.shape[2], k.shape[2]
    everything = _repeated(k, q.shape[1] // k.shape[1]).transpose(-1, -2)
    for start in range(0, queries, ROWS):
        rows = slice(start, min(start + ROWS, queries))
        kept = rules.part(rows, queries, keys)
        scores = q[:, :, rows].to(everything.dtype) @ everything * scale
        seen = _ahead(rows, queries, keys, q.device) if causal and mask is None else None
        given = None if mask is None else _rows_of(mask, rows)
        if given is not None and given.dtype != torch.bool:
            scores = scores + given.to(scores.dtype)
            given = given > HIDDEN
        for hides in (seen, given):
            if hides is not None:
                scores = scores.masked_fill(~hides, float("-inf"))
        yield rows, scores, kept & ~scores.isinf()


def _seen(scores: Tensor, kept: Tensor, normalize: str) -> Tensor:
    return scores if normalize == "all" else scores.masked_fill(~kept, float("-inf"))


def _ahead(rows: slice, queries: int, keys: int, device: torch.device) -> Tensor:
    query = torch.arange(rows.start, rows.stop, device=device) + keys - queries
    return torch.arange(keys, device=device) <= query[:, None]


def _rows_of(mask: Tensor, rows: slice) -> Tensor:
    return mask if mask.shape[-2] == 1 else mask[..., rows, :]


def _join(weights: Tensor, v: Tensor) -> Tensor:
    return weights @ _repeated(v, weights.shape[1] // v.shape[1])


def _repeated(x: Tensor, group: int) -> Tensor:
    return x.to(_wide(x)).repeat_interleave(group, 1) if group > 1 else x.to(_wide(x))


def _grouped(x: Tensor, group: int) -> Tensor:
    return x.unflatten(1, (-1, group)).sum(2) if group > 1 else x


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
