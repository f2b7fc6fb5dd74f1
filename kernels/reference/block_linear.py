"""Block-sparse linear in plain PyTorch, a block at a time, any floating dtype: what the others are held against."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def places(ptr: Tensor, idx: Tensor) -> list[tuple[int, int]]:
    """Row and column of every block."""
    ends = ptr.tolist()
    rows = [row for row in range(len(ends) - 1) for _ in range(ends[row], ends[row + 1])]
    return list(zip(rows, idx.tolist(), strict=True))


def dense(values: Tensor, index: list[Tensor], outputs: int, inputs: int) -> Tensor:
    """W [outputs, inputs], zeros where no block is."""
    height, width = values.shape[1:]
    rows, columns = index[0].numel() - 1, index[2].numel() - 1
    weight = values.new_zeros(rows * height, columns * width)
    for block, (row, column) in zip(values, places(index[0], index[1]), strict=True):
        weight[row * height : (row + 1) * height, column * width : (column + 1) * width] = block
    return weight[:outputs, :inputs]


def block_linear(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], outputs: int) -> Tensor:
    """y = x Wᵀ + b: x [..., inputs], bias [outputs] → [..., outputs]."""
    made = x @ dense(values, index, outputs, x.shape[-1]).mT
    return made if bias is None else made + bias


def block_linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the kept blocks, and of the bias."""
    height, width = values.shape[1:]
    rows, inner = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    dx = (rows @ dense(values, index, grad.shape[-1], x.shape[-1])).view(x.shape)
    whole = pad(rows.mT @ inner, (0, -inner.shape[1] % width, 0, -rows.shape[1] % height))
    dvalues = torch.empty_like(values)
    for n, (row, column) in enumerate(places(index[0], index[1])):
        dvalues[n] = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return dx, dvalues, rows.sum(0)
