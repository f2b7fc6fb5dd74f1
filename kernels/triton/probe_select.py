"""Sketch, score and choose in one launch: s = probes x, score[b] = Σₐ (dictionary[:, a, b] · s)², the best in order.

x [T, d], probes [m, d], dictionary [m, atoms, blocks]; fp32, fp16, bf16; sums in fp32. A program serves one row, or all
rows where they share a list. The `keep`-th best is found bit by bit in keys that no two blocks share (score, then lower
number first), so equal scores are settled the same way every time.

Reference: `surgery.kernels.reference.probe_select`. Source: radix selection; Block-OMP (Eldar et al., 2010) for the score.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton.gathered_ffn_up import compilation
from surgery.kernels.tuning import architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

TABLE = "probe_select"
PLACES = tl.constexpr(2048)  # numbers of blocks in a key
KEY_BITS = tl.constexpr(43)  # 32 of the score, 11 of the number


@triton.jit
def sketch_row(x, probes, row, d, m, x_row, probes_row, PROBES: tl.constexpr, TILE_D: tl.constexpr):
    """s [PROBES] of one row."""
    probe = tl.arange(0, PROBES)
    sums = tl.zeros([PROBES, TILE_D], tl.float32)
    for start in range(0, d, TILE_D):
        k = start + tl.arange(0, TILE_D)
        values = tl.load(x + row.to(tl.int64) * x_row + k, mask=k < d, other=0.0).to(tl.float32)
        held = (probe < m)[:, None] & (k < d)[None, :]
        some = tl.load(probes + probe[:, None] * probes_row + k[None, :], mask=held, other=0.0)
        sums += some.to(tl.float32) * values[None, :]
    return tl.sum(sums, 1)


@triton.jit
def sketch_rows(
    x, probes, first, rows, d, m, x_row, probes_row,
    ROWS: tl.constexpr, PROBES: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """s [ROWS, PROBES] of some rows, zero past the last."""
    row, probe = first + tl.arange(0, ROWS), tl.arange(0, PROBES)
    sums = tl.zeros([ROWS, PROBES], tl.float32)
    for start in range(0, d, TILE_D):
        k = start + tl.arange(0, TILE_D)
        at = x + row.to(tl.int64)[:, None] * x_row + k[None, :]
        values = tl.load(at, mask=(row < rows)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)
        held = (probe < m)[:, None] & (k < d)[None, :]
        some = tl.load(probes + probe[:, None] * probes_row + k[None, :], mask=held, other=0.0).to(tl.float32)
        sums = tl.dot(values, tl.trans(some), sums, input_precision="ieee")
    return sums


@triton.jit
def choose(scores, chosen, blocks, keep, BLOCKS: tl.constexpr):
    """Write the numbers of the `keep` highest scores, sorted. A NaN is below every score."""
    number = tl.arange(0, BLOCKS)
    value = tl.load(scores + number, mask=number < blocks, other=0.0)
    bits = value.to(tl.int32, bitcast=True).to(tl.int64) + 1  # scores are not negative: their bits are in order
    bits = tl.where(value == value, bits, 0)
    key = tl.where(number < blocks, bits * PLACES + (PLACES - 1 - number), -1)
    last = tl.zeros([1], tl.int64)
    for step in range(0, KEY_BITS):
        bit = tl.full([1], 1, tl.int64) << (KEY_BITS - 1 - step)
        enough = tl.sum((key >= last + bit).to(tl.int32), 0) >= keep
        last = tl.where(enough, last + bit, last)
    held = key >= last
    place = tl.cumsum(held.to(tl.int32), 0) - 1
    tl.store(chosen + place, number, mask=held)


@triton.jit
def select(
    x, probes, dictionary, chosen, scores,
    x_row, probes_row, dictionary_probe, rows, d, m, atoms, blocks, keep,
    ROWS: tl.constexpr, PROBES: tl.constexpr, TILE_D: tl.constexpr, TILE_B: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """ROWS 1: a program is one row. Else one program sums over all rows, ROWS at a time."""
    own = tl.program_id(0).to(tl.int64)
    scores += own * blocks
    probe = tl.arange(0, PROBES)
    for first in range(0, rows if ROWS > 1 else 1, ROWS):
        if ROWS == 1:
            sketch = sketch_row(x, probes, own, d, m, x_row, probes_row, PROBES, TILE_D)
        else:
            sketch = sketch_rows(x, probes, first, rows, d, m, x_row, probes_row, ROWS, PROBES, TILE_D)
        for start in range(0, blocks, TILE_B):
            number = start + tl.arange(0, TILE_B)
            # These addresses belong to the same threads every time: nobody else has written what is read here.
            total = tl.load(scores + number, mask=(number < blocks) & (first > number - number), other=0.0)
            for atom in range(0, atoms):
                at = dictionary + probe[:, None] * dictionary_probe + atom * blocks + number[None, :]
                held = (probe < m)[:, None] & (number < blocks)[None, :]
                some = tl.load(at, mask=held, other=0.0).to(tl.float32)
                if ROWS == 1:
                    match = tl.sum(some * sketch[:, None], 0)
                    total += match * match
                else:
                    matches = tl.dot(sketch, some, input_precision="ieee")
                    total += tl.sum(matches * matches, 0)
            tl.store(scores + number, total, mask=number < blocks)
    tl.debug_barrier()
    choose(scores, chosen + own * keep, blocks, keep, BLOCKS)


SIZES = (256, 1024, 2048)
"""What the number of blocks is padded to: few, since a thread holds at most 16 of them."""


def probe_select(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, shared: bool) -> tuple[Tensor, Tensor]:
    """`reference.probe_select`."""
    x, probes, dictionary = (each.contiguous() for each in (x, probes, dictionary))
    (rows, d), (m, atoms, blocks) = x.shape, dictionary.shape
    lists = 1 if shared else rows
    chosen = torch.empty(lists, keep, dtype=torch.int32, device=x.device)
    scores = torch.empty(lists, blocks, dtype=torch.float32, device=x.device)
    if not lists:
        return chosen, scores
    row = pick(TABLE, architecture(x.device), x.dtype, m, "shared" if shared else "each")
    select[(lists,)](
        x, probes, dictionary, chosen, scores,
        d, d, atoms * blocks, rows, d, m, atoms, blocks, keep,
        PROBES=row.dim, BLOCKS=next(size for size in SIZES if size >= blocks), **row.launch,
    )  # fmt: skip
    return chosen, scores


SELECT = (
    "x:* probes:* dictionary:* chosen:*i32 scores:*fp32 x_row:i32 probes_row:i32 dictionary_probe:i32 rows:i32 d:i32 "
    "m:i32 atoms:i32 blocks:i32 keep:i32"
)


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row with every size of list."""
    for row in shipped(TABLE, arch):
        for blocks in SIZES:
            constants = {"PROBES": row.dim, "BLOCKS": blocks}
            label = f"{row.dtype} m={row.dim} {row.tile} blocks={blocks}"
            made = compilation("probe_select:select", SELECT, row, row.dtype, constants, label)
            # Sums of scores are in fp32 whatever comes in: no tensor cores here.
            yield Compilation(
                **(vars(made) | {"expects": {}, "aligned": (*made.aligned, "probes_row", "dictionary_probe")})
            )
