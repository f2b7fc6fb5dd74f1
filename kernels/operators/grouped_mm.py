"""`surgery::grouped_mm`: every row times the matrix of its group, as a mixture of experts has it."""

from typing import Any

import torch
from surgery.kernels.operators.define import operator
from torch import Tensor


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """y[s : e] = x[s : e] W_g for each group g of rows, where e = ends[g] and s = ends[g - 1], 0 for the first.

    x [S, K], sorted by group; W [G, K, N], any strides; ends [G] of whole numbers, ascending, at most S → y [S, N], 0
    behind the last group. Reads `ends` on the host, once. Raises ValueError for what does not fit: `ends` may come from a
    stranger's file. The reference is the formula, in `tests/kernels/test_grouped_mm.py`.
    """
    return OPERATOR(rows, weights, ends)


def _bounds(rows: Tensor, ends: Tensor) -> list[tuple[int, int]]:
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    if any(stop < start for start, stop in zip(starts, stops, strict=True)) or stops and stops[-1] > len(rows):
        raise ValueError(f"ends of groups ascend to at most {len(rows)}, got {stops[:8]}")
    return list(zip(starts, stops, strict=True))


def _check(rows: Tensor, weights: Tensor, ends: Tensor) -> None:
    if rows.dim() != 2 or weights.dim() != 3 or weights.shape[1] != rows.shape[1] or ends.shape != weights.shape[:1]:
        shapes = ", ".join(str(list(each.shape)) for each in (rows, weights, ends))
        raise ValueError(f"rows are [S, K], weights [G, K, N], ends [G], got {shapes}")
    if ends.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ends are whole numbers, got {ends.dtype}")


def _run(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    _check(rows, weights, ends)
    made = rows.new_zeros((rows.shape[0], weights.shape[2]))
    for group, (start, stop) in enumerate(_bounds(rows, ends)):
        if start < stop:
            torch.mm(rows[start:stop], weights[group], out=made[start:stop])
    return made


def _fake(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    _check(rows, weights, ends)
    return rows.new_empty((rows.shape[0], weights.shape[2]))


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """xᵀ y of each group, [G, K, N]: the gradient of the weights."""
    made = left.new_zeros((ends.shape[0], left.shape[1], right.shape[1]))
    for group, (start, stop) in enumerate(_bounds(left, ends)):
        if start < stop:
            torch.mm(left[start:stop].T, right[start:stop], out=made[group])
    return made


def _fake_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty((ends.shape[0], left.shape[1], right.shape[1]))


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weights, ends = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    back = OPERATOR(gradient, weights.mT, ends) if wanted[0] else None
    return back, OUTER(rows, gradient, ends) if wanted[1] else None, None


def _flops(rows: Tensor, weights: Tensor, ends: Tensor) -> int:
    return 2 * rows.numel() * weights.shape[2]


OPERATOR = operator(
    "grouped_mm(Tensor rows, Tensor weights, Tensor ends) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_backward,
)
OUTER = operator(
    "grouped_outer(Tensor left, Tensor right, Tensor ends) -> Tensor", cpu=_outer, cuda=_outer, fake=_fake_outer
)
