"""The gathered feed-forward without a GPU: a native kernel that streams kept rows, gathered products in PyTorch."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from surgery.kernels.native import available, library
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS
from torch import Tensor
from torch.nn.functional import linear

MOST_ROWS = 256
"""Up to here the native kernel reads weights once for all rows; beyond, a gathered product in BLAS is as fast."""

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
ARGUMENTS = (
    (INT, POINTER, SIZE, POINTER, POINTER, POINTER, INT, POINTER, POINTER, POINTER, POINTER)
    + (SIZE,) * 5
    + (INT, INT, POINTER)
)


@functools.cache
def _kernel() -> ctypes._CFuncPtr:
    function = library("gathered_ffn").gathered_ffn
    function.argtypes, function.restype = ARGUMENTS, None
    return function


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def native(
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
    """`kernels/native/gathered_ffn.cpp`: each kept weight is read once for all rows; sums in fp32.

    bf16 rounds the activations to bf16 before the way down, as two linear layers do.
    """
    x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    biases = [each if each is None else each.contiguous() for each in (up_bias, gate_bias, down_bias)]
    blocks = blocks.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    weights = (_pointer(up), _pointer(gate), _pointer(down_t), down_t.is_contiguous())
    sizes = (blocks.numel(), block, *x.shape, up.shape[0])
    how = (list(ACTIVATIONS).index(activation), torch.get_num_threads())
    half = x.dtype == torch.bfloat16
    _kernel()(
        half, _pointer(x), x.stride(0), *weights, *map(_pointer, biases), _pointer(blocks), *sizes, *how, _pointer(y)
    )
    return y


def refuse_native(x: Tensor, up: Tensor, gate: Tensor | None, down_t: Tensor, *rest: object) -> str | None:
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {x.dtype}"
    if x.shape[0] > MOST_ROWS:
        return f"{x.shape[0]} rows are over {MOST_ROWS}"
    if not (up.is_contiguous() and (gate is None or gate.is_contiguous())):
        return "up and gate have to be contiguous"
    if not (down_t.is_contiguous() or down_t.t().is_contiguous()):
        return "down has to be contiguous, by channels or by outputs"
    return available("gathered_ffn")


def kept_channels(blocks: Tensor, block: int, channels: int) -> tuple[Tensor, Tensor]:
    """Channels of the listed blocks and which of them exist.

    On a CPU all of them do. Elsewhere no size may depend on data: [N · block], where the first listed channel stands for
    each that does not exist.
    """
    listed = (blocks.long()[:, None] * block + torch.arange(block, device=blocks.device)).reshape(-1)
    exists = (listed >= 0) & (listed < channels)
    if blocks.device.type == "cpu":
        return listed[exists], exists[exists]
    return torch.where(exists, listed, listed[:1].clamp(min=0)), exists


def dense_above(x: Tensor, native_runs: bool, packed: bool) -> float:
    """The share of kept channels above which computing all of them was faster here; 1.0: never.

    Measured with `python -m bench.ffn` on Zen 4, d 2048, f 8192, one thread.
    """
    rows, half = x.shape[0], x.dtype == torch.bfloat16
    if native_runs and packed:
        fp32, bf16 = ((1, 1.0), (8, 0.78), (MOST_ROWS, 0.66)), ((1, 0.9), (8, 0.8), (32, 0.68), (MOST_ROWS, 0.55))
        limits = bf16 if half else fp32
        return next(limit for most, limit in limits if rows <= most)
    if not native_runs:
        return 0.35 if rows <= MOST_ROWS else 0.7
    if rows <= 8:
        return 0.95 if rows == 1 and not half else 1.0
    if rows <= 32:
        return 0.8
    return 0.66 if half else 0.75


def gathered(
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
    """Copy the kept rows side by side and multiply; any device and dtype, no size that depends on data."""
    channels, exists = kept_channels(blocks, block, up.shape[0])
    hidden = linear(x, up[channels], None if up_bias is None else up_bias[channels])
    act = ACTIVATIONS[activation]
    if gate is None:
        hidden = act(hidden)
    else:
        hidden = act(linear(x, gate[channels], None if gate_bias is None else gate_bias[channels])) * hidden
    y = torch.where(exists, hidden, hidden.new_zeros(())) @ down_t[channels]
    return y if down_bias is None else y + down_bias


def dense(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    down_bias: Tensor | None,
    kept: Tensor | None,
    activation: str,
) -> Tensor:
    """All channels through dense products, those not `kept` (bool [f], None: all) then set to zero. down is [d, f]."""
    product = _product(x, up, gate, down)
    act = ACTIVATIONS[activation]
    hidden = product(x, up, up_bias)
    hidden = act(hidden) if gate is None else act(product(x, gate, gate_bias)) * hidden
    return product(hidden if kept is None else torch.where(kept, hidden, 0), down, down_bias)


def pack(weight: Tensor, rows: int) -> Tensor:
    """A weight [out, in] laid out as oneDNN wants it for about so many rows: opaque, for `dense_packed` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)


def packable(weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
    )


def dense_packed(
    x: Tensor, packed: Sequence[Tensor | None], biases: Sequence[Tensor | None], kept: Tensor | None, activation: str
) -> Tensor:
    """`dense` with up, gate and down laid out once by `pack`: as fast as a compiled layer with frozen weights."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    up, gate, down = packed
    hidden, act = product(x, up, biases[0]), ACTIVATIONS[activation]
    hidden = act(hidden) if gate is None else act(product(x, gate, biases[1])) * hidden
    return product(hidden if kept is None else torch.where(kept, hidden, 0), down, biases[2])


def _product(x: Tensor, *weights: Tensor | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """oneDNN's fp32 product where no gradient is wanted: up to 1.5 times as fast as MKL's on some processors."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return linear
    wanted = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, *weights))
    return linear if wanted or not torch.backends.mkldnn.is_available() else _onednn


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A single row times a weight seen transposed is the one thing it is slow at."""
    if x.shape[0] == 1 and not weight.is_contiguous():
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
