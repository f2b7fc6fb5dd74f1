"""Modulation on a CPU: a native kernel for fp32 and bf16, also over a weight laid out in panels; PyTorch for the rest."""

import ctypes
import functools
from collections.abc import Callable

import torch
from surgery.kernels.native import available, library
from torch import Tensor
from torch.nn.functional import linear, pad, silu

NAME = "modulation"
PANEL = 16
"""Rows of the weight side by side in a panel."""

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
POINTER, SIZE, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
ARGUMENTS = [POINTER, SIZE, POINTER, SIZE, POINTER, POINTER, SIZE, SIZE, SIZE, NUMBER, NUMBER]


def refuse(dtype: torch.dtype) -> str | None:
    """Why the native kernel cannot take this, or None."""
    if dtype not in SUFFIXES:
        return f"takes fp32 and bf16, not {dtype}"
    return available(NAME)


@functools.cache
def function(dtype: torch.dtype) -> Callable:
    found = getattr(library(NAME), f"modulation_{SUFFIXES[dtype]}")
    found.argtypes, found.restype = ARGUMENTS, None
    return found


def forward(c: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """The operator, natively; rows of the weight may lie apart."""
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return _call(c, weight, weight.stride(0), bias, weight.shape[0], activate)


def forward_packed(c: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, activate: bool) -> Tensor:
    return _call(c, packed.contiguous(), -1, bias, outputs, activate)


def _call(c: Tensor, weight: Tensor, stride: int, bias: Tensor | None, outputs: int, activate: bool) -> Tensor:
    inputs = c.shape[-1]
    rows = c if c.dim() == 2 else c.reshape(-1, inputs)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    batch = rows.shape[0]
    out = torch.empty((batch, outputs), dtype=c.dtype)
    if bias is not None and bias.stride(0) != 1:
        bias = bias.contiguous()
    shift = None if bias is None else bias.data_ptr()
    function(c.dtype)(
        rows.data_ptr(), rows.stride(0), weight.data_ptr(), stride, shift, out.data_ptr(),
        batch, outputs, inputs, activate, torch.get_num_threads(),
    )  # fmt: skip
    return out if c.dim() == 2 else out.view(*c.shape[:-1], outputs)


def forward_torch(c: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """Any dtype, any device: the product is the vendor's."""
    return linear(silu(c) if activate else c, weight, bias)


def forward_packed_torch(c: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, activate: bool) -> Tensor:
    return forward_torch(c, unpack(packed, outputs, c.shape[-1]), bias, activate)


def backward(
    grad: Tensor, c: Tensor, weight: Tensor, activate: bool, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of c, weight and bias where wanted, empty tensors where not."""
    rows, coordinates = grad.reshape(-1, weight.shape[0]), c.reshape(-1, weight.shape[1])
    dc, dweight, dbias = c.new_empty(0), c.new_empty(0), c.new_empty(0)
    if wanted[0]:
        inner = rows @ weight
        dc = (torch.ops.aten.silu_backward(inner, coordinates) if activate else inner).view(c.shape)
    if wanted[1]:
        dweight = rows.mT @ (silu(coordinates) if activate else coordinates)
    if wanted[2]:
        dbias = rows.sum(0)
    return dc, dweight, dbias


def pairing(dtype: torch.dtype) -> int:
    """How many neighbours along K one processor word holds, which stay together in a panel."""
    return 2 if dtype == torch.bfloat16 else 1


def pack(weight: Tensor) -> Tensor:
    """[N, K] → [ceil(N / 16), ceil(K / p), 16, p], zeros where the weight has ended; p = 2 for bf16, else 1."""
    pair = pairing(weight.dtype)
    outputs, inputs = weight.shape
    whole = pad(weight, (0, -inputs % pair, 0, -outputs % PANEL))
    return whole.view(-1, PANEL, whole.shape[1] // pair, pair).transpose(1, 2).contiguous()


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The weight that `pack` laid out."""
    panels, steps, panel, pair = packed.shape
    return packed.transpose(1, 2).reshape(panels * panel, steps * pair)[:outputs, :inputs]
