"""Attention over listed edges in plain PyTorch, any floating dtype and device: gathered rows, a chunk of edges at a time.

Sums over a row's edges are segment reductions in the order of the list, so two runs give the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from surgery.kernels.cpu import attention_denominator
from torch import Tensor

CHUNK = 1 << 22
"""Gathered elements held at once, about; a chunk has one row at least."""


@dataclass(frozen=True)
class Lists:
    """The lists of rows [first, last) of one head: how long each is, its entries, and where they begin among all."""

    first: int
    last: int
    lengths: Tensor
    idx: Tensor
    begin: int

    def rows(self) -> Tensor:
        """The row of every edge."""
        numbers = torch.arange(self.first, self.last, device=self.idx.device)
        return torch.repeat_interleave(numbers, self.lengths, output_size=self.idx.numel())

    def total(self, values: Tensor, reduce: str = "sum") -> Tensor:
        """Reduce values [E, ...] over the edges of each row; a row without edges gets 0, or -inf as a maximum."""
        initial = 0.0 if reduce == "sum" else float("-inf")
        return torch.segment_reduce(values, reduce, lengths=self.lengths, axis=0, unsafe=True, initial=initial)


def lists(ptr: Tensor, idx: Tensor, pattern: int, rows: int, width: int) -> Iterator[Lists]:
    """A pattern's rows in chunks of about CHUNK / width edges."""
    own = ptr[pattern * rows : (pattern + 1) * rows + 1].tolist()
    first = 0
    while first < rows:
        last = first + 1
        while last < rows and (own[last + 1] - own[first]) * width <= CHUNK:
            last += 1
        begin, end = own[first], own[last]
        lengths = ptr[pattern * rows + first : pattern * rows + last + 1].diff()
        yield Lists(first, last, lengths, idx[begin:end].long(), begin)
        first = last


@dataclass(frozen=True)
class Heads:
    """Which key head and which pattern a query head reads."""

    batch: int
    heads: int
    group: int
    patterns: int

    def __iter__(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Batch, query head, key head, pattern, and which repetition of the list of all edges."""
        for batch in range(self.batch):
            for head in range(self.heads):
                number = batch * self.heads + head
                yield batch, head, head // self.group, number % self.patterns, number // self.patterns


def heads_of(q: Tensor, k: Tensor, ptr: Tensor) -> Heads:
    patterns = (ptr.numel() - 1) // q.shape[2] if q.shape[2] else 1
    return Heads(q.shape[0], q.shape[1], q.shape[1] // k.shape[1], patterns)


def forward(
    q: Tensor, k: Tensor, v: Tensor, edges: list[Tensor], scale: float, normalize: str, causal: bool
) -> tuple[Tensor, Tensor]:
    """out and lse; see the reference."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape)
    if normalize == "all":
        peak, total = attention_denominator.forward(q, k, scale, causal, attention_denominator.Listed(*edges[:2]))
    else:
        peak, total = q.new_zeros((2, *q.shape[:3]), dtype=wide)
    reach = attention_denominator.reach(q, k, normalize, causal)
    for batch, head, own, pattern, _ in heads_of(q, k, edges[0]):
        for part in lists(edges[0], edges[1], pattern, q.shape[2], q.shape[3]):
            place, row = (batch, head, slice(part.first, part.last)), part.rows()
            scores = gathered_dots(q[batch, head], row, k[batch, own], part.idx, wide) * scale
            if normalize == "kept":
                highest = part.total(scores, "max")
                peak[place] = highest.masked_fill(highest == float("-inf"), 0)
            weights = (scores - peak[batch, head][row]).exp()
            total[place] += part.total(weights.masked_fill(part.idx > row + reach, 0))
            sums = part.total(weights[:, None] * v[batch, own][part.idx].to(wide))
            out[place] = (sums * attention_denominator.inverse(total[place])[:, None]).to(q.dtype)
    return out, peak + total.log()


def gathered_dots(a: Tensor, row: Tensor, b: Tensor, column: Tensor, wide: torch.dtype) -> Tensor:
    """a[row] · b[column] for each edge."""
    return (a[row].to(wide) * b[column].to(wide)).sum(-1)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    edges: list[Tensor],
    scale: float,
    normalize: str,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv. One pass over the rows keeps two numbers per edge and head; one over the keys sums them."""
    wide = lse.dtype
    delta = (out.to(wide) * grad_out.to(wide)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    if normalize == "all":
        listed = attention_denominator.Listed(*edges[:2])
        dq, dk = attention_denominator.backward(q, k, -delta, scale, causal, listed)
        lse = attention_denominator.weightless(lse)
    else:
        dq, dk = q.new_zeros(q.shape, dtype=wide), k.new_zeros(k.shape, dtype=wide)
    dv = v.new_zeros(v.shape, dtype=wide)
    ptr, idx, ptr_t, idx_t, place = edges
    heads = heads_of(q, k, ptr)
    probability, slope = (
        q.new_empty((heads.batch * heads.heads // max(heads.patterns, 1), idx.numel()), dtype=wide) for _ in range(2)
    )
    reach = attention_denominator.reach(q, k, normalize, causal)
    for batch, head, own, pattern, copy in heads:
        for part in lists(ptr, idx, pattern, q.shape[2], q.shape[3]):
            row, kept = part.rows(), slice(part.begin, part.begin + part.idx.numel())
            scores = gathered_dots(q[batch, head], row, k[batch, own], part.idx, wide) * scale
            probability[copy, kept] = (scores - lse[batch, head][row]).exp()
            slopes = gathered_dots(grad_out[batch, head], row, v[batch, own], part.idx, wide)
            slopes -= delta[batch, head][row].masked_fill(part.idx > row + reach, 0)
            slope[copy, kept] = slopes * probability[copy, kept] * scale
            keys = k[batch, own][part.idx].to(wide)
            dq[batch, head, part.first : part.last] += part.total(slope[copy, kept][:, None] * keys)
        for part in lists(ptr_t, idx_t, pattern, k.shape[2], q.shape[3]):
            seen = place[part.begin : part.begin + part.idx.numel()]
            keys = (batch, own, slice(part.first, part.last))
            dk[keys] += part.total(slope[copy, seen][:, None] * q[batch, head][part.idx].to(wide))
            dv[keys] += part.total(probability[copy, seen][:, None] * grad_out[batch, head][part.idx].to(wide))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
