"""The way down from kept channels: y[t] = Σᵢ h[t, i] down[cᵢ] + down_bias, split over the list of blocks.

h [T, N · block] of `gathered_ffn_up`; down [f, d] (a row for each channel) or [d, f] seen transposed; y [T, d]. Parts of the
list are summed side by side in fp32, `merge` then adds them in their order: no atomics, two runs give the same bits.

Reference: `surgery.kernels.reference.gathered_ffn`. Source: split-K as in TEAL (Liu et al., 2024, arXiv 2408.14690), with
a fixed order of sums instead of its atomics.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton.gathered_ffn_up import TABLE, compilation, config, hidden_of_kept, length
from surgery.kernels.tuning import architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

INTERPRETED_PROCESSORS = 4


@triton.jit
def down_kept(
    hidden, down, blocks, parts_out,
    down_row, rows, d, f, block, channels, tiles_each,
    ROWS: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr, BY_ROWS: tl.constexpr,
):  # fmt: skip
    """A program: ROWS × TILE_D of y over `tiles_each` tiles of kept channels. parts_out [part, T, d].

    BY_ROWS: down_row steps from one channel to the next, else from one output to the next.
    """
    column = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    part = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    first = part * tiles_each * TILE_C
    last = tl.minimum(first + tiles_each * TILE_C, channels)
    if ROWS == 1:
        sums = tl.zeros([TILE_C, TILE_D], tl.float32)
    else:
        sums = tl.zeros([ROWS, TILE_D], tl.float32)
    for start in range(first, last, TILE_C):
        place = start + tl.arange(0, TILE_C)
        number = tl.load(blocks + start // block)
        channel = number * block + start % block + tl.arange(0, TILE_C)
        exists = (channel >= 0) & (channel < f)
        if BY_ROWS:
            at = down + channel.to(tl.int64)[:, None] * down_row + column[None, :]
        else:
            at = down + channel[:, None] + column.to(tl.int64)[None, :] * down_row
        some = tl.load(at, mask=exists[:, None] & (column < d)[None, :], other=0.0)
        if ROWS == 1:
            values = tl.load(hidden + place).to(tl.float32)
            sums += values[:, None] * some.to(tl.float32)
        else:
            at_row = hidden + row.to(tl.int64)[:, None] * channels + place[None, :]
            values = tl.load(at_row, mask=(row < rows)[:, None] & (place < channels)[None, :], other=0.0)
            sums = tl.dot(values, some, sums, input_precision="ieee")
    if ROWS == 1:
        tl.store(parts_out + part.to(tl.int64) * d + column, tl.sum(sums, 0), mask=column < d)
    else:
        to = parts_out + (part.to(tl.int64) * rows + row)[:, None] * d + column[None, :]
        tl.store(to, sums, mask=(row < rows)[:, None] & (column < d)[None, :])


@triton.jit
def merge(parts_in, bias, y, shifts, parts, size, d, TILE_D: tl.constexpr):
    """A program: TILE_D of the T · d results, parts in their order. `shifts`: how long the bias is, 0 without."""
    at = tl.program_id(0).to(tl.int64) * TILE_D + tl.arange(0, TILE_D)
    held = at < size
    sums = tl.load(bias + at % d, mask=held & (at % d < shifts), other=0.0).to(tl.float32)
    place = parts_in + at
    for _ in range(0, parts):
        sums += tl.load(place, mask=held, other=0.0)
        place += size
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=held)


def gathered_ffn(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down_t: Tensor,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    down_bias: Tensor | None,
    blocks: Tensor,
    block: int,
    activation: str,
) -> Tensor:
    """`reference.gathered_ffn`; contiguous [T, d]."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel() or not blocks.numel():
        return y.copy_(y.new_zeros(()) if down_bias is None else down_bias)
    hidden = hidden_of_kept(x, up, gate, up_bias, gate_bias, blocks, block, activation)
    by_rows = down_t.stride(1) == 1
    down = down_t if by_rows or down_t.stride(0) == 1 else down_t.contiguous()
    by_rows = down.stride(1) == 1
    (rows, d), channels = x.shape, hidden.shape[1]
    row = config("down", x)
    columns, heights = -(-d // row.blocks["TILE_D"]), -(-rows // row.blocks["ROWS"])
    parts, each = partition(channels // row.blocks["TILE_C"], columns * heights, processors(x.device))
    sums = torch.empty(parts, rows, d, dtype=torch.float32, device=x.device)
    down_kept[(columns, parts, heights)](
        hidden, down, blocks.contiguous(), sums,
        down.stride(0) if by_rows else down.stride(1), rows, d, up.shape[0], block, channels, each,
        BY_ROWS=by_rows, **row.launch,
    )  # fmt: skip
    ending = pick(TABLE, architecture(x.device), torch.float32, d, "merge")
    shift = x if down_bias is None else down_bias.contiguous()
    grid = (-(-y.numel() // ending.blocks["TILE_D"]),)
    merge[grid](sums, shift, y, length(down_bias), parts, y.numel(), d, **ending.launch)
    return y


def partition(tiles: int, programs: int, processors: int) -> tuple[int, int]:
    """(parts, tiles in each): about two programs for every processor, none without a tile."""
    wanted = max(1, min(tiles, -(-2 * processors // programs)))
    each = -(-tiles // wanted)
    return -(-tiles // each), each


def processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


DOWN = "hidden:* down:* blocks:*i32 parts_out:*fp32 down_row:i32 rows:i32 d:i32 f:i32 block:i32 channels:i32 tiles_each:i32"
MERGE = "parts_in:*fp32 bias:* y:* shifts:i32 parts:i32 size:i32 d:i32"


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row by rows and by columns; `merge` in each type it writes."""
    for row in shipped(TABLE, arch):
        if row.tile == "merge":
            for dtype in ("bf16", "fp32"):
                yield compilation("gathered_ffn_down:merge", MERGE, row, dtype, {}, f"{dtype} merge")
        for by_rows in (True, False) if row.tile.startswith("down ") else ():
            label = f"{row.dtype} d={row.dim} {row.tile} by {'rows' if by_rows else 'columns'}"
            yield compilation("gathered_ffn_down:down_kept", DOWN, row, row.dtype, {"BY_ROWS": by_rows}, label)
