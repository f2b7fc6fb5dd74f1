"""Kept channels of a feed-forward after the activation: h[t, i] = act(x[t] · up[c] + up_bias[c]), c the i-th kept one.

With a gate h = act(x · gate + gate_bias) (x · up + up_bias). x [T, d], up and gate [f, d], h [T, N · block] in x's dtype;
fp32, fp16, bf16; sums in fp32. A slot of the list that holds -1, and channels past f, give 0.

One row is a stream of weights, multiplied and summed lane by lane; more rows are tiles of `tl.dot`, from 16 rows up (with
fewer, weights still take longer to arrive than the empty rows to multiply).

Reference: `surgery.kernels.reference.gathered_ffn`. Source: Deja Vu (Liu et al., 2023).
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS
from surgery.kernels.tuning import Config, architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

TABLE = "gathered_ffn"
RELU, RELU2, GELU, GELU_TANH = (tl.constexpr(place) for place in range(4))
NARROW = 16


@triton.jit
def activate(x, activation):
    """The activation in fp32; NaN stays NaN. Chosen as it runs, once a program: one kernel serves all."""
    if activation == RELU:
        y = tl.where(x < 0.0, 0.0, x)
    elif activation == RELU2:
        y = tl.where(x < 0.0, 0.0, x)
        y = y * y
    elif activation == GELU:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == GELU_TANH:
        y = x / (1.0 + tl.exp(-1.5957691216057308 * x * (1.0 + 0.044715 * x * x)))
    else:
        y = x / (1.0 + tl.exp(-x))
    return y


@triton.jit
def products(
    x, weight, bias, weight_row, x_row, shifts, rows, d, row, channel, exists,
    ROWS: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """x · weight + bias, fp32: [TILE_C] for one row, else [ROWS, TILE_C]. `shifts`: how long the bias is, 0 without."""
    at_channel = weight + channel.to(tl.int64)[:, None] * weight_row
    shift = tl.load(bias + channel, mask=exists & (channel < shifts), other=0.0).to(tl.float32)
    if ROWS == 1:
        sums = tl.zeros([TILE_C, TILE_D], tl.float32)
        for start in range(0, d, TILE_D):
            k = start + tl.arange(0, TILE_D)
            values = tl.load(x + k, mask=k < d, other=0.0).to(tl.float32)
            some = tl.load(at_channel + k[None, :], mask=exists[:, None] & (k < d)[None, :], other=0.0)
            sums += some.to(tl.float32) * values[None, :]
        return tl.sum(sums, 1) + shift
    else:
        sums = tl.zeros([ROWS, TILE_C], tl.float32)
        for start in range(0, d, TILE_D):
            k = start + tl.arange(0, TILE_D)
            at_row = x + row.to(tl.int64)[:, None] * x_row + k[None, :]
            values = tl.load(at_row, mask=(row < rows)[:, None] & (k < d)[None, :], other=0.0)
            some = tl.load(at_channel + k[None, :], mask=exists[:, None] & (k < d)[None, :], other=0.0)
            sums = tl.dot(values, tl.trans(some), sums, input_precision="ieee")
        return sums + shift[None, :]


@triton.jit(do_not_specialize=["activation"])
def up_kept(
    x, up, gate, up_bias, gate_bias, blocks, hidden,
    x_row, up_row, gate_row, up_shifts, gate_shifts, rows, d, f, block, channels, activation,
    ROWS: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """A program: TILE_C channels of one listed block, ROWS rows. channels = N · block."""
    place = tl.program_id(0) * TILE_C
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    number = tl.load(blocks + place // block)
    channel = number * block + place % block + tl.arange(0, TILE_C)
    exists = (channel >= 0) & (channel < f)
    value = products(x, up, up_bias, up_row, x_row, up_shifts, rows, d, row, channel, exists, ROWS, TILE_C, TILE_D)
    if GATED:
        other = products(
            x, gate, gate_bias, gate_row, x_row, gate_shifts, rows, d, row, channel, exists, ROWS, TILE_C, TILE_D
        )
        value = activate(other, activation) * value
    else:
        value = activate(value, activation)
    column = place + tl.arange(0, TILE_C)
    if ROWS == 1:
        value = tl.where(exists, value, 0.0)
        tl.store(hidden + column, value.to(hidden.dtype.element_ty))
    else:
        value = tl.where(exists[None, :], value, 0.0)
        at = hidden + row.to(tl.int64)[:, None] * channels + column[None, :]
        tl.store(at, value.to(hidden.dtype.element_ty), mask=(row < rows)[:, None])


def hidden_of_kept(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    blocks: Tensor,
    block: int,
    activation: str,
) -> Tensor:
    """h [T, N · block]."""
    x, up = contiguous_rows(x), contiguous_rows(up)
    other = up if gate is None else contiguous_rows(gate)
    up_shift, gate_shift = (x if each is None else each.contiguous() for each in (up_bias, gate_bias))
    rows, channels = x.shape[0], blocks.numel() * block
    row = config("up", x)
    hidden = torch.empty(rows, channels, dtype=x.dtype, device=x.device)
    up_kept[(channels // row.blocks["TILE_C"], -(-rows // row.blocks["ROWS"]))](
        x, up, other, up_shift, gate_shift, blocks.contiguous(), hidden,
        x.stride(0), up.stride(0), other.stride(0), length(up_bias), length(gate_bias),
        *x.shape, up.shape[0], block, channels, list(ACTIVATIONS).index(activation),
        GATED=gate is not None, **row.launch,
    )  # fmt: skip
    return hidden


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dim is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def length(bias: Tensor | None) -> int:
    return 0 if bias is None else bias.shape[0]


def config(kernel: str, x: Tensor) -> Config:
    """The shipped row: one row of x, up to 16, or more."""
    rows, d = x.shape
    size = "one" if rows == 1 else "narrow" if rows <= NARROW else "wide"
    return pick(TABLE, architecture(x.device), x.dtype, d, f"{kernel} {size}")


UP = (
    "x:* up:* gate:* up_bias:* gate_bias:* blocks:*i32 hidden:* x_row:i32 up_row:i32 gate_row:i32 up_shifts:i32 "
    "gate_shifts:i32 rows:i32 d:i32 f:i32 block:i32 channels:i32 activation:i32"
)
ALIGNED = ("x_row", "up_row", "gate_row", "down_row", "d", "f", "block", "channels")


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, plain and gated."""
    for row in shipped(TABLE, arch):
        for gated in (False, True) if row.tile.startswith("up ") else ():
            label = f"{row.dtype} d={row.dim} {row.tile}{' gated' if gated else ''}"
            yield compilation("gathered_ffn_up:up_kept", UP, row, row.dtype, {"GATED": gated}, label)


def compilation(kernel: str, arguments: str, row: Config, dtype: str, constants: dict, label: str) -> Compilation:
    """One compilation; `arguments` are `name:type` words in the kernel's order, `*` a pointer to `dtype`."""
    types = [word.split(":") for word in arguments.split()]
    signature = {name: f"*{dtype}" if kind == "*" else kind for name, kind in types}
    constants = {**row.blocks, **constants}
    products = row.dtype == "bf16" and row.blocks.get("ROWS", 1) > 1
    expects = {"gfx942": ("mfma",)} if products else {}
    if products and row.blocks["ROWS"] >= 64:
        expects["sm90"] = ("wgmma",)
    return Compilation(
        kernel=kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=tuple(name for name, kind in signature.items() if kind.startswith("*") or name in ALIGNED),
        options=row.options,
        expects=expects,
        label=label,
    )
