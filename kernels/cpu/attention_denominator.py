"""The log-sum-exp of all scores of a query, and its gradient, a tile of queries at a time: never S × S memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 1 << 18
"""Scores held at once: 1 MB of fp32, about what a core's own cache holds."""


@dataclass(frozen=True)
class Listed:
    """The keys that are listed for each query (ptr and idx as in `layouts/edges.py`): left out here, see `forward`."""

    ptr: Tensor
    idx: Tensor

    def places(self, number: int, queries: int, first: int, last: int, end: int) -> Tensor:
        """Where the listed keys of queries [first, last) lie among scores [last - first, end] of head `number`."""
        patterns = (self.ptr.numel() - 1) // queries
        ends = self.ptr[number % patterns * queries + first : number % patterns * queries + last + 1]
        row = torch.arange(last - first, device=ends.device).repeat_interleave(ends.diff())
        key = self.idx[int(ends[0]) : int(ends[-1])]
        return (row * end + key)[key < end]


def forward(q: Tensor, k: Tensor, scale: float, causal: bool, listed: Listed) -> tuple[Tensor, Tensor]:
    """peak and total [B, Hq, Sq], at least fp32: Σ_j exp(scale · q_i · k_j) over keys not listed is exp(peak_i) · total_i.

    Over keys j <= i + Sk - Sq if causal; a query without keys has both 0. peak is over listed keys too. Whoever sums the
    listed ones adds their part to `total` from the scores that the weights are made of: with scores of another product,
    rounded otherwise, a key that has nearly all the weight would not get it. peak and total rather than their logarithm:
    rounding that costs the weights a digit.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    peak, total = q.new_zeros((2, *q.shape[:3]), dtype=wide)
    for batch, head, own, (queries, keys) in heads(q, k):
        for first, last, end in tiles(queries, keys, causal):
            scores = tile_scores(q[batch, head, first:last], k[batch, own, :end], scale, first, queries, keys, causal)
            highest = scores.amax(-1)
            highest = highest.masked_fill_(highest == float("-inf"), 0)
            peak[batch, head, first:last] = highest
            places = listed.places(batch * q.shape[1] + head, queries, first, last, end)
            scores.view(-1).index_fill_(0, places, float("-inf"))
            total[batch, head, first:last] = scores.sub_(highest[:, None]).exp_().sum(-1)
    return peak, total


def reach(q: Tensor, k: Tensor, normalize: str, causal: bool) -> int:
    """A listed key j of query i counts in the sum of weights if j <= i + reach."""
    return k.shape[2] - q.shape[2] if normalize == "all" and causal else k.shape[2]


def inverse(total: Tensor) -> Tensor:
    """1 / total, and 0 where it is 0."""
    return torch.where(total > 0, 1 / total, torch.zeros_like(total))


def weightless(lse: Tensor) -> Tensor:
    """inf where it is -inf: a query that no key counts for gives weight 0 to keys that are listed for it all the same."""
    return lse.masked_fill(lse == float("-inf"), float("inf"))


def backward(
    q: Tensor, k: Tensor, weight: Tensor, scale: float, causal: bool, listed: Listed
) -> tuple[Tensor, Tensor]:
    """Gradients of Σ weight_i · log Σ_j exp(…) in q [B, Hq, Sq, D] and k [B, Hkv, Sk, D], at least fp32.

    The logarithm is of the sum over all keys; what reaches q and k through listed ones is left out.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    dq, dk = q.new_zeros(q.shape, dtype=wide), k.new_zeros(k.shape, dtype=wide)
    for batch, head, own, (queries, keys) in heads(q, k):
        for first, last, end in tiles(queries, keys, causal):
            rows, columns = q[batch, head, first:last], k[batch, own, :end]
            scores = tile_scores(rows, columns, scale, first, queries, keys, causal)
            share = scores.softmax(-1)
            if causal:
                share[: max(queries - keys - first, 0)] = 0  # these queries come before the first key
            places = listed.places(batch * q.shape[1] + head, queries, first, last, end)
            share.view(-1).index_fill_(0, places, 0.0)
            share *= weight[batch, head, first:last, None] * scale
            dq[batch, head, first:last] = share @ columns.to(wide)
            dk[batch, own, :end] += share.T @ rows.to(wide)
    return dq, dk


def heads(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Batch, query head, its key head, (queries, keys)."""
    group = q.shape[1] // k.shape[1]
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            yield batch, head, head // group, (q.shape[2], k.shape[2])


def tiles(queries: int, keys: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """Queries [first, last) and the end of the keys that any of them sees."""
    if not keys:
        return
    step = max(TILE // keys, 16)
    for first in range(0, queries, step):
        last = min(first + step, queries)
        end = min(max(last + keys - queries, 0), keys) if causal else keys
        if end:
            yield first, last, end


def tile_scores(q: Tensor, k: Tensor, scale: float, first: int, queries: int, keys: int, causal: bool) -> Tensor:
    """Scaled scores of a tile, -inf after the query."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).T).mul_(scale)
    if causal:
        row = torch.arange(q.shape[0], device=q.device)[:, None] + first + keys - queries
        scores.masked_fill_(torch.arange(k.shape[0], device=q.device) > row, float("-inf"))
    return scores
