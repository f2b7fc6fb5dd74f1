"""Which layout to try first for a pattern: block, bitmask, edge or dense, by what each has to compute and to move.

A model ranks, it does not decide: lowering measures the candidates in this order and takes one only where it was faster.
"""

from dataclasses import dataclass

import torch
from surgery.kernels.layouts.blocks import BLOCK, Blocks
from surgery.kernels.layouts.ceilings import Ceilings, ceilings
from surgery.kernels.layouts.compressed import rows_of
from surgery.kernels.layouts.edges import Edges

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
INDEX = 4


@dataclass(frozen=True)
class Pattern:
    """A mask in numbers. `pairs`, `full` and `part` are of one head, on average; `heads` counts all batches'.

    fp16 on a CPU computes in fp32 and is taken as that.
    """

    queries: int
    keys: int
    heads: int
    dim: int
    dtype: str
    pairs: float
    full: float
    part: float
    block: tuple[int, int] = BLOCK

    @classmethod
    def of_blocks(cls, blocks: Blocks, heads: int, dim: int, dtype: str) -> "Pattern":
        """The numbers of a block layout."""
        full, part = (each.numel() / blocks.patterns for each in (blocks.full_idx, blocks.part_idx))
        pairs = blocks.kept / blocks.patterns
        return cls(blocks.queries, blocks.keys, heads, dim, dtype, pairs, full, part, blocks.block)

    @classmethod
    def of_edges(cls, edges: Edges, heads: int, dim: int, dtype: str, block: tuple[int, int] = BLOCK) -> "Pattern":
        """The numbers of single edges, and of the blocks that they would fall into."""
        rows, columns = -(-edges.queries // block[0]), -(-edges.keys // block[1])
        row = rows_of(edges.ptr)
        pattern, query = row // max(edges.queries, 1), row % max(edges.queries, 1)
        place = (pattern * rows + query // block[0]) * columns + edges.idx.long() // block[1]
        held = torch.unique(place, return_counts=True)[1]
        full = int((held == block[0] * block[1]).sum()) / edges.patterns
        part = held.numel() / edges.patterns - full
        return cls(edges.queries, edges.keys, heads, dim, dtype, edges.idx.numel() / edges.patterns, full, part, block)

    @property
    def density(self) -> float:
        return self.pairs / max(self.queries * self.keys, 1)


@dataclass(frozen=True)
class Cost:
    """A candidate: FLOPs, bytes, the seconds that they take at best, and which of the two bounds it."""

    layout: str
    flops: float
    bytes: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Choice:
    """The layout to try first, all candidates from the cheapest on, and why."""

    layout: str
    costs: tuple[Cost, ...]
    reason: str


def choose(pattern: Pattern, architecture: str = "cpu") -> Choice:
    """Rank the layouts of a pattern on an architecture (`cpu`, `sm90`, …). Raises ValueError for an unknown dtype."""
    if pattern.dtype not in SIZES:
        raise ValueError(f"no ceilings for {pattern.dtype}: one of {', '.join(SIZES)}")
    rates = ceilings(architecture)
    candidates = (dense(pattern, rates), tiles(pattern, rates), edge(pattern, rates))
    costs = tuple(sorted(candidates, key=lambda cost: cost.seconds))
    if pattern.pairs >= pattern.queries * pattern.keys:
        whole = next(cost for cost in costs if cost.layout == "dense")
        rest = tuple(cost for cost in costs if cost is not whole)
        return Choice("dense", (whole, *rest), "every pair is kept: there is nothing to leave out")
    return Choice(costs[0].layout, costs, _reason(pattern, costs, rates))


def dense(pattern: Pattern, rates: Ceilings) -> Cost:
    """All pairs, under a mask of the inputs' dtype where any pair is left out."""
    pairs = pattern.queries * pattern.keys
    mask = pairs * SIZES[pattern.dtype] if pattern.pairs < pairs else 0
    return _cost("dense", pattern, pairs, rates, _rate(rates.dense, pattern.dtype), _once(pattern) + mask)


def tiles(pattern: Pattern, rates: Ceilings) -> Cost:
    """Whole blocks and blocks under bits: one kernel, named by the half that keeps the most pairs."""
    area = pattern.block[0] * pattern.block[1]
    blocks = pattern.full + pattern.part
    moved = _once(pattern) + blocks * INDEX + pattern.part * area / 8
    name = "block" if 2 * pattern.full * area >= pattern.pairs else "bitmask"
    return _cost(name, pattern, blocks * area, rates, _rate(rates.tiles, pattern.dtype), moved)


def edge(pattern: Pattern, rates: Ceilings) -> Cost:
    """Kept pairs only, a key and a value row for each, read where they lie."""
    size = SIZES[pattern.dtype]
    rows = pattern.heads * pattern.pairs * 2 * pattern.dim * size
    cost = _cost("edge", pattern, pattern.pairs, rates, rates.edges, 0)
    moved = rows + pattern.pairs * INDEX
    memory = moved / rates.gather
    spent = max(cost.seconds - rates.overhead["edge"], memory) + rates.overhead["edge"]
    return Cost("edge", cost.flops, moved, spent, "memory" if memory > cost.flops / rates.edges else "compute")


def _once(pattern: Pattern) -> float:
    """Queries, keys, values and outputs, each moved once."""
    return 2 * pattern.heads * (pattern.queries + pattern.keys) * pattern.dim * SIZES[pattern.dtype]


def _cost(name: str, pattern: Pattern, pairs: float, rates: Ceilings, flops_per_s: float, moved: float) -> Cost:
    """Two products over some pairs of every head."""
    flops = 4 * pattern.heads * pairs * pattern.dim
    compute, memory = flops / flops_per_s, moved / rates.stream
    bound = "compute" if compute >= memory else "memory"
    return Cost(name, flops, moved, max(compute, memory) + rates.overhead[name], bound)


def _rate(rates: dict[str, float], dtype: str) -> float:
    return rates.get(dtype, rates["fp32"])


def _reason(pattern: Pattern, costs: tuple[Cost, ...], rates: Ceilings) -> str:
    first, second = costs[:2]
    ahead = second.seconds / first.seconds
    touched = (pattern.full + pattern.part) * pattern.block[0] * pattern.block[1]
    return (
        f"{pattern.density:.2%} of pairs in blocks that cover {touched / max(pattern.queries * pattern.keys, 1):.0%}: "
        f"{first.layout} takes {first.seconds * 1e3:.3g} ms at best ({first.bound}), {second.layout} {ahead:.2g}x that "
        f"(ceilings {rates.source})"
    )
