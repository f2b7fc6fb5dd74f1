"""Block-sparse linear on a GPU, backward: the input's gradient by columns of blocks, the kept blocks' one by one.

Each program owns what it writes and walks a sorted index: no atomics, the same bits on every run.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton.block_linear import compilation, row_for
from surgery.kernels.tuning.pick import shipped
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def inputs_gradient(
    grad,
    values,
    ptr_t,
    idx_t,
    map_t,
    dx,
    batch,
    outputs,
    inputs,
    grad_row,
    SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    STEP: tl.constexpr,
):
    """dx = g W: SIZE inputs × BATCH rows, transposed, over the blocks of one column."""
    block_column = tl.program_id(0)
    row = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    within, step = tl.arange(0, SIZE), tl.arange(0, STEP)
    grads = grad + row.to(tl.int64)[None, :] * grad_row + step[:, None]
    weights = values + step[None, :] * SIZE + within[:, None]
    STEPS: tl.constexpr = SIZE // STEP
    first, last = tl.load(ptr_t + block_column), tl.load(ptr_t + block_column + 1)
    sums = tl.zeros([SIZE, BATCH], tl.float32)
    for each in range(first * STEPS, last * STEPS):
        entry, start = each // STEPS, (each % STEPS) * STEP
        output = tl.load(idx_t + entry) * SIZE + start
        block = tl.load(map_t + entry).to(tl.int64)
        w = tl.load(weights + block * (SIZE * SIZE) + start * SIZE)
        kept = (row < batch)[None, :] & (output + step < outputs)[:, None]
        sums = tl.dot(w, tl.load(grads + output, mask=kept, other=0.0), sums, input_precision="ieee")
    column = block_column * SIZE + within
    place = dx + row.to(tl.int64)[None, :] * inputs + column[:, None]
    tl.store(place, sums.to(dx.dtype.element_ty), mask=(row < batch)[None, :] & (column < inputs)[:, None])


@triton.jit
def values_gradient(
    grad,
    x,
    rows,
    idx,
    dvalues,
    batch,
    outputs,
    inputs,
    grad_row,
    x_row,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
):
    """dW = gᵀ x in one kept block."""
    block = tl.program_id(0)
    within, step = tl.arange(0, SIZE), tl.arange(0, STEP)
    output, column = tl.load(rows + block) * SIZE + within, tl.load(idx + block) * SIZE + within
    sums = tl.zeros([SIZE, SIZE], tl.float32)
    for start in range(0, batch, STEP):
        row = (start + step).to(tl.int64)
        g = tl.load(
            grad + row[None, :] * grad_row + output[:, None],
            mask=(row < batch)[None, :] & (output < outputs)[:, None],
            other=0.0,
        )
        a = tl.load(
            x + row[:, None] * x_row + column[None, :],
            mask=(row < batch)[:, None] & (column < inputs)[None, :],
            other=0.0,
        )
        sums = tl.dot(g, a, sums, input_precision="ieee")
    place = dvalues + block.to(tl.int64) * (SIZE * SIZE) + within[:, None] * SIZE + within[None, :]
    tl.store(place, sums.to(dvalues.dtype.element_ty))


def block_linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.block_linear_backward` where wanted, empty tensors where not."""
    grads, rows = (
        each if each.stride(1) == 1 else each.contiguous()
        for each in (grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]))
    )
    dx, dvalues, dbias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        dx = _inputs(grads, rows, values.contiguous(), index).view(x.shape)
    if wanted[1]:
        dvalues = _values(grads, rows, values, index)
    if wanted[2]:
        dbias = grads.sum(0)
    return dx, dvalues, dbias


def _inputs(grads: Tensor, rows: Tensor, values: Tensor, index: list[Tensor]) -> Tensor:
    dx = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    if dx.numel():
        config = row_for("dx", rows, rows.shape[0], values)
        grid = (index[2].numel() - 1, triton.cdiv(rows.shape[0], config.blocks["BATCH"]))
        inputs_gradient[grid](
            grads, values, *index[2:], dx, rows.shape[0], grads.shape[1], rows.shape[1], grads.stride(0),
            SIZE=values.shape[1], **config.launch,
        )  # fmt: skip
    return dx


def _values(grads: Tensor, rows: Tensor, values: Tensor, index: list[Tensor]) -> Tensor:
    made = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if made.numel():
        config = row_for("values", rows, rows.shape[0], values)
        every = torch.arange(index[0].numel() - 1, dtype=torch.int32, device=rows.device)
        block_rows = torch.repeat_interleave(every, index[0].diff(), output_size=values.shape[0])
        values_gradient[(values.shape[0],)](
            grads, rows, block_rows, index[1], made,
            rows.shape[0], grads.shape[1], rows.shape[1], grads.stride(0), rows.stride(0),
            SIZE=values.shape[1], **config.launch,
        )  # fmt: skip
    return made


SIZES = ("batch", "outputs", "inputs", "grad_row")


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row of both gradients."""
    for row in shipped("block_linear", arch):
        if row.tile.startswith("dx"):
            pointers, indices = ("grad", "values", "dx"), ("ptr_t", "idx_t", "map_t")
            yield compilation("block_linear_backward:inputs_gradient", row, pointers, indices, SIZES)
        if row.tile == "values":
            pointers, numbers = ("grad", "x", "dvalues"), (*SIZES, "x_row")
            yield compilation("block_linear_backward:values_gradient", row, pointers, ("rows", "idx"), numbers)
