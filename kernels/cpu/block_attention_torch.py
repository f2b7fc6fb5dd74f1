"""Block-sparse attention in plain PyTorch, any floating dtype and device: tiles gathered, multiplied in batches.

A round takes one block of every row that has one left, so that each round is a few batched products and no two entries
of it write the same place: two runs give the same bits, on a GPU too. Sums are in fp32 (fp64 for fp64), and a round
never holds more than ELEMENTS scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

ELEMENTS = 1 << 22
"""Scores at once."""


@dataclass(frozen=True)
class Round:
    """One block for each of several rows: which rows, which tiles of q and of k they multiply, what is kept."""

    row: Tensor  # [n], among batch · heads · tiles
    query: Tensor  # [n], tile of q, among batch · Hq · R
    key: Tensor  # [n], tile of k, among batch · Hkv · C
    keep: Tensor | None  # bool [n, BM, BN], None where all is kept


@dataclass(frozen=True)
class Problem:
    """Tiles of the tensors, [batch · heads · tiles, rows, dim], in the dtype of the sums, and how heads share them."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: list[Tensor]
    block: tuple[int, int]
    scale: float
    heads: tuple[int, int, int]  # batch, Hq, Hkv
    tiles: tuple[int, int]  # R, C

    def rounds(self, transposed: bool) -> Iterator[Round]:
        """Rows are tiles of queries, or, transposed, tiles of keys per query head."""
        batch, heads, kv_heads = self.heads
        full_ptr, full_idx, part_ptr, part_idx = self.layout[5:9] if transposed else self.layout[:4]
        place_of = self.layout[9] if transposed else torch.arange(part_idx.numel(), device=part_idx.device)
        per_head, other = (self.tiles[1], self.tiles[0]) if transposed else self.tiles
        item = torch.arange(batch * heads * per_head, device=full_ptr.device)
        head, tile = item // max(per_head, 1), item % max(per_head, 1)
        patterns = (full_ptr.numel() - 1) // max(per_head, 1)
        line = head % max(patterns, 1) * per_head + tile
        full, part = (pointer.long()[:-1][line] for pointer in (full_ptr, part_ptr))
        fulls, parts = (pointer.long().diff()[line] for pointer in (full_ptr, part_ptr))
        shared = head // heads * kv_heads + head % heads // (heads // kv_heads)
        step = max(ELEMENTS // (self.block[0] * self.block[1]), 1)
        for rank in range(int((fulls + parts).max()) if item.numel() else 0):
            for some in (fulls + parts > rank).nonzero().flatten().split(step):
                whole = fulls[some] > rank
                at_full = _pick(full_idx, full[some] + rank)
                at_part = part[some] + rank - fulls[some]
                found = torch.where(whole, at_full, _pick(part_idx, at_part))
                query, key = (found, tile[some]) if transposed else (tile[some], found)
                keep = self.keep(_pick(place_of, at_part), whole)
                tiles_q, tiles_k = head[some] * self.tiles[0] + query, shared[some] * self.tiles[1] + key
                yield Round(some, tiles_q, tiles_k, keep)

    def keep(self, place: Tensor, whole: Tensor) -> Tensor | None:
        bits = self.layout[4]
        if not bits.shape[0] or bool(whole.all()):
            return None
        column = torch.arange(self.block[1], device=bits.device)
        kept = (bits[place][..., column // 32] >> (column % 32)) & 1 != 0
        return kept | whole[:, None, None]

    def scores(self, step: Round) -> Tensor:
        scores = torch.bmm(self.q[step.query], self.k[step.key].mT).mul_(self.scale)
        return scores if step.keep is None else scores.masked_fill_(~step.keep, float("-inf"))


def _pick(values: Tensor, place: Tensor) -> Tensor:
    """values[place]; what lies outside is not used and gives 0."""
    if not values.numel():
        return torch.zeros_like(place)
    return values[place.clamp(0, values.numel() - 1)].long()


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiled(x: Tensor, rows: int) -> Tensor:
    """[batch · heads · tiles, rows, dim], filled with zeros, in the dtype of the sums."""
    filled = pad(x.to(sums_dtype(x.dtype)), (0, 0, 0, -x.shape[2] % rows))
    return filled.reshape(-1, rows, x.shape[3])


def untiled(tiles: Tensor, like: Tensor) -> Tensor:
    """The tensor [batch, heads, rows, dim] of such tiles, in the dtype of `like`."""
    batch, heads, rows = like.shape[:3]
    whole = tiles.reshape(batch, heads, -1, tiles.shape[-1])
    return whole[:, :, :rows].to(like.dtype).contiguous()


def problem(q: Tensor, k: Tensor, v: Tensor, layout: list[Tensor], block: tuple[int, int], scale: float) -> Problem:
    tiles = -(-q.shape[2] // block[0]), -(-k.shape[2] // block[1])
    heads = q.shape[0], q.shape[1], k.shape[1]
    wide = tiled(q, block[0]), tiled(k, block[1]), tiled(v, block[1])
    return Problem(*wide, layout, block, scale, heads, tiles)


def torch_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: list[Tensor], block: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """(out, lse) as the native kernel; lse in fp32, or fp64 for fp64."""
    it = problem(q, k, v, layout, block, scale)
    level = it.q.new_full(it.q.shape[:2], float("-inf"))
    total, out = torch.zeros_like(level), it.q.new_zeros(*it.q.shape[:2], v.shape[3])
    for step in it.rounds(transposed=False):
        scores, row = it.scores(step), step.row
        top = torch.maximum(level[row], scores.amax(-1))
        base = top.masked_fill(top == float("-inf"), 0.0)
        weights, shrink = scores.sub_(base.unsqueeze(-1)).exp_(), (level[row] - base).exp()
        total[row] = total[row] * shrink + weights.sum(-1)
        out[row] = out[row] * shrink.unsqueeze(-1) + torch.bmm(weights, it.v[step.key])
        level[row] = top
    out /= total.masked_fill(total == 0, 1.0).unsqueeze(-1)
    lse = (level + total.log()).unsqueeze(-1)
    shape = q.new_empty(0, dtype=lse.dtype).expand(*q.shape[:3], 0)
    return untiled(out, q), untiled(lse, shape).squeeze(-1)


def torch_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: list[Tensor], block: tuple[int, int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv): dq over rows of queries, dk and dv over rows of keys, summed over the heads that share them."""
    it = problem(q, k, v, layout, block, scale)
    grad, level = tiled(grad_out, block[0]), tiled(lse.unsqueeze(-1), block[0])
    level = level.masked_fill(level == float("-inf"), float("inf"))
    delta = (tiled(out, block[0]) * grad).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta -= tiled(grad_lse.unsqueeze(-1), block[0])

    def slopes(step: Round) -> tuple[Tensor, Tensor]:
        weights = (it.scores(step) - level[step.query]).exp_()
        return weights, torch.bmm(grad[step.query], it.v[step.key].mT).sub_(delta[step.query]).mul_(weights)

    dq = torch.zeros_like(it.q)
    for step in it.rounds(transposed=False):
        dq[step.row] += torch.bmm(slopes(step)[1], it.k[step.key])
    rows = q.shape[0] * q.shape[1] * it.tiles[1]
    dk, dv = (it.q.new_zeros(rows, block[1], x.shape[3]) for x in (k, v))
    for step in it.rounds(transposed=True):
        weights, slope = slopes(step)
        dk[step.row] += torch.bmm(slope.mT, it.q[step.query])
        dv[step.row] += torch.bmm(weights.mT, grad[step.query])
    shared = (q.shape[0], k.shape[1], q.shape[1] // k.shape[1], it.tiles[1] * block[1])
    dk, dv = (each.reshape(*shared, each.shape[-1]).sum(2) for each in (dk * scale, dv))
    return untiled(dq * scale, q), untiled(dk, k), untiled(dv, v)
