"""Masks in which every query sees one run of keys: causal, windows, packed segments. Tables of blocks, never S × S."""

from dataclasses import dataclass

import torch
from surgery.kernels.layouts import bits
from torch import Tensor


@dataclass(frozen=True)
class Intervals:
    """Query i of pattern m sees key j iff `low[m, i] <= j < high[m, i]`: int64 [M, queries], within [0, keys]."""

    low: Tensor
    high: Tensor
    keys: int

    def tables(self, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Which blocks hold any kept pair, and which nothing else: bool [M, R, C] twice."""
        low, high = self._by_block(block[0])
        patterns, rows, _ = low.shape
        columns = -(-self.keys // block[1])
        some = low < high
        begin = torch.where(some, low // block[1], 0)
        end = torch.where(some, (high - 1) // block[1] + 1, 0)
        change = torch.zeros(patterns, rows, columns + 1, dtype=torch.int32, device=low.device)
        step = some.to(torch.int32)
        change.scatter_add_(2, begin, step).scatter_add_(2, end, -step)
        touched = change.cumsum(2)[..., :columns] > 0
        first = torch.arange(columns, device=low.device) * block[1]
        covers = low.amax(2, keepdim=True) <= first
        return touched, touched & covers & (high.amin(2, keepdim=True) >= first + block[1])

    def bits(self, block: tuple[int, int], pattern: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The packed masks of some blocks: int64 [P] three times → int32 [P, BM, words(BN)]."""
        low, high = self._by_block(block[0])
        first = (column * block[1]).unsqueeze(1)
        return bits.interval(low[pattern, row] - first, high[pattern, row] - first, block[1])

    def _by_block(self, height: int) -> tuple[Tensor, Tensor]:
        """Bounds as [M, R, BM]; rows past the last query see nothing, so a block that they are in is never full."""
        patterns, queries = self.low.shape
        rows = -(-queries // height)
        pad = (0, rows * height - queries)
        return tuple(torch.nn.functional.pad(each, pad).view(patterns, rows, height) for each in (self.low, self.high))


def everything(queries: int, keys: int, device: torch.device | str = "cpu") -> Intervals:
    """Every query sees every key."""
    low = torch.zeros(1, queries, dtype=torch.int64, device=device)
    return Intervals(low, torch.full_like(low, keys), keys)


def causal(queries: int, keys: int, device: torch.device | str = "cpu") -> Intervals:
    """Query i sees key j iff j <= i + keys - queries: the ends are aligned."""
    low = torch.zeros(1, queries, dtype=torch.int64, device=device)
    last = torch.arange(queries, device=device) + keys - queries
    return Intervals(low, (last + 1).clamp(0, keys).unsqueeze(0), keys)


def window(queries: int, keys: int, left: int, right: int, device: torch.device | str = "cpu") -> Intervals:
    """Query i sees the `left` keys before its own, its own (i + keys - queries) and the `right` keys after it."""
    if left < 0 or right < 0:
        raise ValueError(f"a window reaches left={left} and right={right} keys: neither can be negative")
    own = torch.arange(queries, device=device) + keys - queries
    return Intervals((own - left).clamp(0, keys).unsqueeze(0), (own + right + 1).clamp(0, keys).unsqueeze(0), keys)


def segments(query_offsets: Tensor, key_offsets: Tensor, causal: bool) -> Intervals:
    """A query sees the keys of its own segment; causal aligns the ends of each. int64 [n + 1] twice, from 0 on.

    Raises ValueError for offsets that do not begin at 0, that fall, or that are not equally many.
    """
    check_offsets("query_offsets", query_offsets)
    check_offsets("key_offsets", key_offsets)
    if len(query_offsets) != len(key_offsets):
        raise ValueError(f"{len(query_offsets) - 1} query segments but {len(key_offsets) - 1} key segments")
    query = torch.arange(int(query_offsets[-1]), device=query_offsets.device)
    # Of several segments that begin here, the last is the one that is not empty.
    segment = torch.searchsorted(query_offsets, query, right=True) - 1
    low, high = key_offsets[segment], key_offsets[segment + 1]
    if causal:
        behind = query_offsets[segment + 1] - 1 - query
        high = torch.maximum(high - behind, low)
    return Intervals(low.unsqueeze(0), high.unsqueeze(0), int(key_offsets[-1]))


def check_offsets(name: str, offsets: Tensor) -> None:
    """Raise ValueError unless these are int64 [n + 1], begin at 0 and never fall."""
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or not offsets.numel():
        raise ValueError(f"{name} is {offsets.dtype} {list(offsets.shape)}, expected int64 [segments + 1]")
    if int(offsets[0]):
        raise ValueError(f"{name} begins at {int(offsets[0])}, expected 0")
    falls = offsets.diff() < 0
    if bool(falls.any()):
        raise ValueError(f"{name} falls after segment {int(falls.nonzero()[0])}")
