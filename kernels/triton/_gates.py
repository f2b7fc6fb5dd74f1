"""Steps that the kernels of gated attention share: hashed noise, gates, who sees whom, arguments. Not a kernel by itself.

Logits are in base 2: multiplied by log2(e), so that `exp2` and `log2` serve. Noise: `reference/gated_noise.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import checks_columns, padded_dim, whole_rows
from surgery.kernels.tuning import Config, architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

TABLE = "gated_attention"


@triton.jit
def mix(x):
    """A bijection of 32-bit words."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_keys(seed, line, rows):
    """The noise's key of every query of a head; seed points at an int64."""
    word = tl.load(seed)
    low, high = (word & 0xFFFFFFFF).to(tl.uint32), ((word >> 32) & 0xFFFFFFFF).to(tl.uint32)
    head = mix(mix(mix(low ^ 0x9E3779B9) ^ high) ^ line.to(tl.uint32))
    return mix(rows.to(tl.uint32) ^ head)


@triton.jit
def column_keys(columns):
    """The noise's key of every key."""
    return mix(columns.to(tl.uint32) ^ 0x85EBCA6B)


@triton.jit
def logistic(words):
    """Noise in base 2 from the keys of a query and a key, combined by xor."""
    u = ((mix(words) >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return tl.log2(u) - tl.log2(1.0 - u)


@triton.jit
def sigmoid(x):
    """Of a logit in base 2; 0 at -inf."""
    return 1.0 / (1.0 + tl.exp2(-x))


@triton.jit
def gate(z, words, noisy, soft, inverse, GATED: tl.constexpr):
    """The gate at z and its soft form. noisy, soft: 1.0 or 0.0; without GATED the gate is hard, and there is no other."""
    if GATED:
        shaken = z + logistic(words) * noisy
        smooth = sigmoid(shaken * inverse)
        hard = tl.where(shaken > 0, 1.0, 0.0)
        return tl.where(soft > 0, smooth, hard), smooth
    else:
        hard = tl.where(z > 0, 1.0, 0.0)
        return hard, hard


@triton.jit
def slopes(scores, da, lse, delta, offset, expected, words, noisy, soft, inverse, GATED: tl.constexpr):
    """Backward at an edge: the gradient of its logit, its weight, and what of the gradient the bias gets.

    scores are -inf where a key is not seen: there all three are 0.
    """
    z = scores + offset
    weight = tl.exp2(scores - lse)
    opened, smooth = gate(z, words, noisy, soft, inverse, GATED)
    chance = sigmoid(z)
    dz = chance * (1.0 - chance) * expected
    if GATED:
        dz += weight * da * (smooth * (1.0 - smooth) * inverse)
    return weight * (opened * da - delta) + dz, weight * opened, dz


def config(kernel: str, q: Tensor) -> Config:
    """The shipped row for these tensors. Raises LookupError if there is none."""
    return pick(TABLE, architecture(q.device), q.dtype, q.shape[-1], kernel)


def shared_arguments(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seed: Tensor | None, key_mask: Tensor | None
) -> tuple[Tensor, ...]:
    """q, k, v, bias, seed and key_mask as every kernel takes them: absent ones as a zero and as keys all seen.

    q, k and v may get longer: `whole_rows`.
    """
    seed = torch.zeros(1, dtype=torch.int64, device=q.device) if seed is None else seed
    mask = torch.ones(1, k.shape[2], dtype=torch.bool, device=q.device) if key_mask is None else key_mask.contiguous()
    mask = mask.expand(q.shape[0], -1).view(torch.uint8)
    return whole_rows(q), whole_rows(k), whole_rows(v), bias.float().contiguous(), seed, mask


def numbers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor, causal: bool) -> tuple[int, ...]:
    """Strides and sizes that every kernel takes. Query i sees keys up to i + shift."""
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], mask.stride(0))
    shift = k.shape[2] - q.shape[2] if causal else k.shape[2]
    return (*strides, q.shape[1], q.shape[1] // k.shape[1], bias.numel(), q.shape[2], k.shape[2], q.shape[3], shift)


def switches(gates: str, seed: Tensor | None, temperature: float) -> tuple[float, float, float]:
    """noisy, soft, inverse."""
    return float(seed is not None), float(gates == "soft"), 1.0 / temperature


INPUTS = "q:* k:* v:* bias:*fp32 seed:*i64 key_mask:*u8"
NUMBERS = (
    "q_batch:i32 q_head:i32 q_row:i32 k_batch:i32 k_head:i32 k_row:i32 v_batch:i32 v_head:i32 v_row:i32 "
    "mask_batch:i32 heads:i32 group:i32 biases:i32 queries:i32 keys:i32 dim:i32 shift:i32 "
    "tiles:i32 scale:fp32 noisy:fp32 soft:fp32 inverse:fp32"
)
UNSPECIALIZED = ["mask_batch", "heads", "group", "biases", "queries", "keys", "shift", "tiles"]


def compilations_of(
    file: str, kernel: str, pointers: str, arch: str, wide: str, switched: tuple[Mapping[str, Any], ...]
) -> Iterator[Compilation]:
    """Every shipped row of a kernel with every setting of its switches; the head dim padded, and not where it differs."""
    for row in shipped(TABLE, arch):
        if row.tile != kernel:
            continue
        for setting in switched:
            for checks in sorted({checks_columns(row, row.dim), True}):
                yield _compilation(f"{file}:{kernel}", f"{INPUTS} {pointers} {NUMBERS}", row, checks, wide, setting)


def _compilation(
    kernel: str, arguments: str, row: Config, checks: bool, wide: str, setting: Mapping[str, Any]
) -> Compilation:
    element = "*bf16" if row.dtype == "bf16" else "*fp32"
    types = [word.split(":") for word in arguments.split()]
    signature = {name: element if kind == "*" else kind for name, kind in types}
    constants = {**row.blocks, "DIM": padded_dim(row.dim), "CHECKED": checks, **setting}
    strides = tuple(
        name for name in signature if name.endswith(("_batch", "_head", "_row")) and name not in UNSPECIALIZED
    )
    aligned = (*(name for name, kind in signature.items() if kind.startswith("*")), *strides, "dim")
    expects: Mapping[str, Any] = {"gfx942": ("mfma",)} if row.dtype == "bf16" else {}
    if row.dtype == "bf16" and row.blocks[wide] >= 64:
        expects = {**expects, "sm90": ("wgmma",)}
    flags = " ".join(f"{name.lower()}={int(value)}" for name, value in setting.items())
    return Compilation(
        kernel=kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=aligned,
        options=row.options,
        expects=expects,
        label=f"{row.dtype} D={row.dim}{' checked' if checks else ''} {flags}",
    )
