"""Block-sparse linear on a CPU: a native kernel for fp32 and bf16; dense products of gathered columns for the rest."""

import ctypes
import functools
from collections.abc import Callable

import torch
from surgery.kernels.layouts.compressed import rows_of
from surgery.kernels.native import available, library
from torch import Tensor
from torch.nn.functional import pad

NAME = "block_linear"
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
BUDGET = 1 << 23
"""Numbers that the PyTorch path gathers at a time, about."""

POINTER, SIZE, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
ARGUMENTS = {
    "": [POINTER, SIZE, *[POINTER] * 6, NUMBER],
    "_dx": [POINTER, SIZE, *[POINTER] * 6, NUMBER],
    "_dvalues": [POINTER, SIZE, POINTER, SIZE, *[POINTER] * 4, NUMBER],
}


def refuse(dtype: torch.dtype) -> str | None:
    """Why the native kernel cannot take this, or None."""
    if dtype not in SUFFIXES:
        return f"takes fp32 and bf16, not {dtype}"
    return available(NAME)


@functools.cache
def function(part: str, dtype: torch.dtype) -> Callable:
    found = getattr(library(NAME), f"block_linear{part}_{SUFFIXES[dtype]}")
    found.argtypes, found.restype = ARGUMENTS[part], None
    return found


def forward(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], outputs: int) -> Tensor:
    """The operator, natively: rows of blocks in parallel."""
    ptr, idx, ptr_t = (each.contiguous() for each in index[:3])
    rows, values = as_rows(x), values.contiguous()
    out = torch.empty((rows.shape[0], outputs), dtype=x.dtype)
    bias = None if bias is None else bias.contiguous()
    function("", x.dtype)(
        rows.data_ptr(), rows.stride(0), values.data_ptr(), ptr.data_ptr(), idx.data_ptr(),
        None if bias is None else bias.data_ptr(), out.data_ptr(),
        shape(rows, outputs, values, ptr, ptr_t), torch.get_num_threads(),
    )  # fmt: skip
    return out.view(*x.shape[:-1], outputs)


def backward(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the kept blocks and of the bias where wanted, empty tensors where not."""
    ptr, idx, ptr_t, idx_t, map_t = (each.contiguous() for each in index)
    grads, rows, values = as_rows(grad), as_rows(x), values.contiguous()
    sizes, threads = shape(rows, grad.shape[-1], values, ptr, ptr_t), torch.get_num_threads()
    dx, dvalues, dbias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        dx = torch.empty(x.shape, dtype=x.dtype)
        function("_dx", x.dtype)(
            grads.data_ptr(), grads.stride(0), values.data_ptr(), ptr_t.data_ptr(), idx_t.data_ptr(),
            map_t.data_ptr(), dx.data_ptr(), sizes, threads,
        )  # fmt: skip
    if wanted[1]:
        dvalues = torch.empty(values.shape, dtype=values.dtype)
        function("_dvalues", x.dtype)(
            grads.data_ptr(), grads.stride(0), rows.data_ptr(), rows.stride(0), ptr.data_ptr(), idx.data_ptr(),
            dvalues.data_ptr(), sizes, threads,
        )  # fmt: skip
    if wanted[2]:
        dbias = grads.sum(0)
    return dx, dvalues, dbias


def shape(rows: Tensor, outputs: int, values: Tensor, ptr: Tensor, ptr_t: Tensor) -> ctypes.Array:
    """The sizes as the kernel takes them: batch, outputs, inputs, height, width, rows and columns of blocks."""
    batch, inputs = rows.shape
    blocks = ptr.numel() - 1, ptr_t.numel() - 1
    return (ctypes.c_int64 * 7)(batch, outputs, inputs, *values.shape[1:], *blocks)


def as_rows(x: Tensor) -> Tensor:
    """[..., K] → [batch, K], each row contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def forward_torch(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], outputs: int) -> Tensor:
    """Any dtype, any device: each row of blocks is one dense product of the columns that it kept."""
    height, width = values.shape[1:]
    ends, columns = index[0].tolist(), index[2].numel() - 1
    across = in_blocks(as_rows(x), columns, width).permute(1, 2, 0)
    made = [
        values[low:high].transpose(0, 1).reshape(height, -1) @ across[index[1][low:high].long()].flatten(0, 1)
        for low, high in zip(ends, ends[1:], strict=False)
    ]
    out = torch.cat(made).mT[:, :outputs]
    return (out if bias is None else out + bias).reshape(*x.shape[:-1], outputs)


def backward_torch(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Any dtype, any device: columns of blocks as rows for x, products of gathered pairs for the blocks."""
    ptr, idx, ptr_t, idx_t, map_t = index
    dx, dvalues, dbias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        turned = values[map_t.long()].transpose(1, 2)
        dx = forward_torch(grad, turned, None, [ptr_t, idx_t, ptr], x.shape[-1])
    if wanted[1]:
        dvalues = _values_gradient(as_rows(grad), as_rows(x), values, ptr, idx, ptr_t)
    if wanted[2]:
        dbias = as_rows(grad).sum(0)
    return dx, dvalues, dbias


def _values_gradient(grad: Tensor, x: Tensor, values: Tensor, ptr: Tensor, idx: Tensor, ptr_t: Tensor) -> Tensor:
    kept, height, width = values.shape
    down = in_blocks(grad, ptr.numel() - 1, height).permute(1, 2, 0)
    across = in_blocks(x, ptr_t.numel() - 1, width).transpose(0, 1)
    row, column = rows_of(ptr), idx.long()
    each = max(1, BUDGET // max(1, x.shape[0] * (height + width)))
    made = [torch.bmm(down[row[n : n + each]], across[column[n : n + each]]) for n in range(0, kept, each)]
    return torch.cat(made) if made else torch.empty_like(values)


def in_blocks(rows: Tensor, count: int, size: int) -> Tensor:
    """[batch, K] → [batch, count, size], zeros past the end."""
    return pad(rows, (0, count * size - rows.shape[1])).view(rows.shape[0], count, size)
