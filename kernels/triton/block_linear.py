"""Block-sparse linear on a GPU, forward: a tile of outputs × batch walks the kept blocks of its row, in order."""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.tuning.pick import Config, architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

NARROW = 16
"""Up to so many rows of x fill a narrow tile."""


@triton.jit
def forward(
    x,
    values,
    bias,
    ptr,
    idx,
    out,
    batch,
    outputs,
    inputs,
    x_row,
    biased,
    SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    STEP: tl.constexpr,
):
    """SIZE outputs × BATCH rows, transposed: the weight's block is the tall side that tensor cores need."""
    block_row = tl.program_id(0)
    row = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    within, step = tl.arange(0, SIZE), tl.arange(0, STEP)
    output = block_row * SIZE + within
    coordinates = x + row.to(tl.int64)[None, :] * x_row + step[:, None]
    wide = within.to(tl.int64)
    STEPS: tl.constexpr = SIZE // STEP
    first, last = tl.load(ptr + block_row), tl.load(ptr + block_row + 1)
    sums = tl.zeros([SIZE, BATCH], tl.float32)
    for each in range(first * STEPS, last * STEPS):
        block, start = each // STEPS, (each % STEPS) * STEP
        column = tl.load(idx + block) * SIZE + start
        w = tl.load(values + (block * SIZE + wide)[:, None] * SIZE + (start + step)[None, :])
        kept = (row < batch)[None, :] & (column + step < inputs)[:, None]
        sums = tl.dot(w, tl.load(coordinates + column, mask=kept, other=0.0), sums, input_precision="ieee")
    shift = tl.load(bias + output, mask=output < outputs * biased, other=0.0)
    sums += shift.to(tl.float32)[:, None]
    place = out + row.to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(place, sums.to(out.dtype.element_ty), mask=(row < batch)[None, :] & (output < outputs)[:, None])


def block_linear(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], outputs: int) -> Tensor:
    """`reference.block_linear`, square blocks."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty((rows.shape[0], outputs), dtype=x.dtype, device=x.device)
    if out.numel():
        config = row_for("forward", x, rows.shape[0], values)
        grid = (index[0].numel() - 1, triton.cdiv(rows.shape[0], config.blocks["BATCH"]))
        forward[grid](
            rows, values.contiguous(), out if bias is None else bias.contiguous(), *index[:2], out,
            *rows.shape[:1], outputs, rows.shape[1], rows.stride(0), int(bias is not None),
            SIZE=values.shape[1], **config.launch,
        )  # fmt: skip
    return out.view(*x.shape[:-1], outputs)


def row_for(kernel: str, x: Tensor, batch: int, values: Tensor) -> Config:
    """The shipped row of a kernel for this side of blocks and so many rows of x."""
    tile = kernel if kernel == "values" else f"{kernel} {'narrow' if batch <= NARROW else 'wide'}"
    return pick("block_linear", architecture(x.device), x.dtype, values.shape[1], tile)


POINTERS = ("x", "values", "bias", "out")
INDICES = ("ptr", "idx")
NUMBERS = ("batch", "outputs", "inputs", "x_row", "biased")


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row of the forward."""
    for row in shipped("block_linear", arch):
        if row.tile.startswith("forward"):
            yield compilation("block_linear:forward", row, POINTERS, INDICES, NUMBERS)


def compilation(
    kernel: str, row: Config, pointers: tuple[str, ...], indices: tuple[str, ...], numbers: tuple[str, ...]
) -> Compilation:
    """A row's compilation: which arguments point to its dtype, to indices, and which are sizes."""
    constants = {**row.blocks, "SIZE": row.dim}
    signature = {
        **dict.fromkeys(pointers, f"*{row.dtype}"),
        **dict.fromkeys(indices, "*i32"),
        **dict.fromkeys(numbers, "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    expects = {"gfx942": ("mfma",)} if row.dtype == "bf16" else {}
    if row.dtype == "bf16" and row.dim >= 64:
        expects["sm90"] = ("wgmma",)
    return Compilation(
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=(*pointers, *indices, *(name for name in numbers if name not in ("batch", "biased"))),
        options=row.options,
        expects=expects,
        label=f"{row.dtype} {row.tile} {row.dim}",
    )
