"""Modulation on a GPU: a product of few rows with a large weight, silu and bias fused in; bound by reading the weight."""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.tuning.pick import Config, architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

NARROW = 16
"""Up to so many rows of c fill a narrow tile; more share a wide one, so that the weight is read once for them."""


@triton.jit
def product(
    c,
    weight,
    bias,
    out,
    batch,
    outputs,
    inputs,
    c_row,
    weight_row,
    biased,
    ACTIVATE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BATCH: tl.constexpr,
    STEP: tl.constexpr,
):
    """One tile of the transposed output, OUTPUTS × BATCH: the weight then fills the tall side that tensor cores need."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    step = tl.arange(0, STEP)
    weights = weight + output.to(tl.int64)[:, None] * weight_row + step[None, :]
    coordinates = c + row.to(tl.int64)[None, :] * c_row + step[:, None]
    sums = tl.zeros([OUTPUTS, BATCH], tl.float32)
    for start in range(0, inputs, STEP):
        left = inputs - start
        w = tl.load(weights + start, mask=(output < outputs)[:, None] & (step < left)[None, :], other=0.0)
        x = tl.load(coordinates + start, mask=(row < batch)[None, :] & (step < left)[:, None], other=0.0)
        if ACTIVATE:
            wide = x.to(tl.float32)
            x = (wide / (1.0 + tl.exp(-wide))).to(x.dtype)
        sums = tl.dot(w, x, sums, input_precision="ieee")
    shift = tl.load(bias + output, mask=output < outputs * biased, other=0.0)
    sums += shift.to(tl.float32)[:, None]
    place = out + row.to(tl.int64)[None, :] * outputs + output[:, None]
    kept = (row < batch)[None, :] & (output < outputs)[:, None]
    tl.store(place, sums.to(out.dtype.element_ty), mask=kept)


def modulation(c: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """`reference.modulation`; the weight's rows may lie apart."""
    outputs, inputs = weight.shape
    rows = c.reshape(-1, inputs)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    out = torch.empty((rows.shape[0], outputs), dtype=c.dtype, device=c.device)
    if out.numel():
        config = row_for(c, rows.shape[0])
        grid = (triton.cdiv(outputs, config.blocks["OUTPUTS"]), triton.cdiv(rows.shape[0], config.blocks["BATCH"]))
        product[grid](
            rows, weight, out if bias is None else bias.contiguous(), out,
            rows.shape[0], outputs, inputs, rows.stride(0), weight.stride(0), int(bias is not None),
            ACTIVATE=activate, **config.launch,
        )  # fmt: skip
    return out.view(*c.shape[:-1], outputs)


def row_for(c: Tensor, batch: int) -> Config:
    """The shipped row for so many rows of c."""
    return pick("modulation", architecture(c.device), c.dtype, c.shape[-1], "narrow" if batch <= NARROW else "wide")


POINTERS = ("c", "weight", "bias", "out")
NUMBERS = ("batch", "outputs", "inputs", "c_row", "weight_row", "biased")


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, with and without silu."""
    for row in shipped("modulation", arch):
        for activate in (True, False):
            constants = {**row.blocks, "ACTIVATE": activate}
            signature = {**dict.fromkeys(POINTERS, f"*{row.dtype}"), **dict.fromkeys(NUMBERS, "i32")}
            tensor_cores = row.dtype == "bf16"
            yield Compilation(
                kernel="modulation:product",
                signature={**signature, **dict.fromkeys(constants, "constexpr")},
                constexprs=constants,
                num_warps=row.num_warps,
                num_stages=row.num_stages,
                aligned=(*POINTERS, "outputs", "inputs", "c_row", "weight_row"),
                options=row.options,
                expects={"sm90": ("wgmma",), "gfx942": ("mfma",)} if tensor_cores else {},
                label=f"{row.dtype} {row.tile}{' silu' if activate else ''}",
            )
