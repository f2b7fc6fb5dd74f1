"""`surgery::modulation`: the linear layer behind adaLN, over the coordinates of the conditioning that were kept."""

from typing import Any

import torch
from surgery.kernels.cpu import modulation as cpu
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference import modulation as reference
from surgery.kernels.tuning.pick import interpreted
from torch import Tensor

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def modulation(c: Tensor, weight: Tensor, bias: Tensor | None = None, *, activate: bool = True) -> Tensor:
    """y = silu(c) Wᵀ + b, or c Wᵀ + b without `activate`.

    c [..., K], weight [N, K], bias [N] → [..., N]; any strides, one dtype of fp32, bf16, fp16 (fp64 without a GPU
    kernel). silu(c) is rounded to the dtype, as a separate layer would; sums are fp32. All blocks of a diffusion
    transformer read the same c: their weights stacked, N = depth · 6 · D, make one call. On a GPU rows of an odd K load
    a number at a time: give a view of a weight whose rows lie a multiple of 8 apart.

    Raises ValueError for shapes, dtypes or devices that do not fit. The reference is `kernels/reference/modulation.py`;
    source: adaLN, Peebles and Xie, arXiv 2212.09748.
    """
    return torch.ops.surgery.modulation(c, weight, bias, activate)


def pack_modulation(weight: Tensor) -> Tensor:
    """Lay a weight [N, K] out once for a CPU: panels of 16 rows, [ceil(N / 16), ceil(K / p), 16, p], p = 2 for bf16."""
    if weight.dim() != 2 or not weight.dtype.is_floating_point:
        raise ValueError(f"a weight is [N, K] of floats, got {weight.dtype} {list(weight.shape)}")
    return cpu.pack(weight.detach())


def packed_modulation(c: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, *, activate: bool = True) -> Tensor:
    """`modulation` with a weight from `pack_modulation`, and the same bits; `outputs` is N.

    Faster on a CPU, half again with many rows, several times with few: nothing is laid out anew at each call. Elsewhere
    it is unpacked first.
    """
    return torch.ops.surgery.modulation_packed(c, packed, bias, outputs, activate)


def check(c: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the arguments fit together."""
    if weight.dim() != 2 or c.dim() < 1 or c.shape[-1] != weight.shape[1]:
        raise ValueError(f"c is [..., K] and weight [N, K], got {list(c.shape)} and {list(weight.shape)}")
    _check_bias(c, weight, bias, weight.shape[0])


def check_packed(c: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> None:
    pair = cpu.pairing(packed.dtype)
    inputs = c.shape[-1] if c.dim() else 0
    expected = [-(-outputs // cpu.PANEL), -(-inputs // pair), cpu.PANEL, pair]
    if c.dim() < 1 or list(packed.shape) != expected:
        raise ValueError(f"{outputs} outputs of {inputs} inputs are packed as {expected}, got {list(packed.shape)}")
    _check_bias(c, packed, bias, outputs)


def _check_bias(c: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> None:
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias is [{outputs}], got {list(bias.shape)}")
    others = (weight,) if bias is None else (weight, bias)
    if not c.dtype.is_floating_point or any(each.dtype != c.dtype for each in others):
        raise ValueError(f"one floating dtype for all, got {c.dtype}, {', '.join(str(each.dtype) for each in others)}")
    if any(each.device != c.device for each in others):
        raise ValueError(f"c is on {c.device}, weight or bias is not")


def _native(c: Tensor, *rest: Any) -> str | None:
    return cpu.refuse(c.dtype)


def _no_gpu_kernel(c: Tensor, *rest: Any) -> str | None:
    if c.device.type == "cpu" and not interpreted():
        return "needs a GPU (or TRITON_INTERPRET=1)"
    return None if c.dtype in TRITON_DTYPES else f"takes fp32, bf16 and fp16, not {c.dtype}"


def _triton(*args: Any) -> Tensor:
    from surgery.kernels.triton.modulation import modulation as launch

    return launch(*args)


def _reference_packed(c, packed, bias, outputs, activate):
    return reference.modulation(c, cpu.unpack(packed, outputs, c.shape[-1]), bias, activate)


def _triton_packed(c, packed, bias, outputs, activate):
    return _triton(c, cpu.unpack(packed, outputs, c.shape[-1]), bias, activate)


def _reference_backward(grad, c, weight, activate, wanted):
    made = reference.modulation_backward(grad, c, weight, activate)
    return tuple(each if want else c.new_empty(0) for each, want in zip(made, wanted, strict=True))


NATIVE = (Backend("native", cpu.forward, _native), Backend("torch", cpu.forward_torch, never))
NATIVE_PACKED = (
    Backend("native", cpu.forward_packed, _native),
    Backend("torch", cpu.forward_packed_torch, never),
)
REFERENCE = Backend("reference", reference.modulation, never)
TRITON = Backend("triton", _triton, _no_gpu_kernel)
REFERENCE_PACKED = Backend("reference", _reference_packed, never)
TRITON_PACKED = Backend("triton", _triton_packed, _no_gpu_kernel)
# A gradient is plain dense products: the vendor's are the fastest, whatever was asked of the forward.
BACKWARD = (
    Backend("torch", cpu.backward, never),
    Backend("reference", _reference_backward, never),
    Backend("native", cpu.backward, never),
    Backend("triton", cpu.backward, never),
)


def _forward(*backends: Backend):
    def checked(c: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
        check(c, weight, bias)
        return run("modulation", backends, c, weight, bias, activate)

    return checked


def _forward_packed(*backends: Backend):
    def checked(c: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, activate: bool) -> Tensor:
        check_packed(c, packed, bias, outputs)
        return run("modulation_packed", backends, c, packed, bias, outputs, activate)

    return checked


def _backward(*args: Any):
    return run("modulation_backward", BACKWARD, *args)


def _fake(c, weight, bias, activate):
    return c.new_empty((*c.shape[:-1], weight.shape[0]))


def _fake_packed(c, packed, bias, outputs, activate):
    return c.new_empty((*c.shape[:-1], outputs))


def _fake_backward(grad, c, weight, activate, wanted):
    shapes = (c.shape, weight.shape, weight.shape[:1])
    return tuple(c.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))


def _setup(ctx, inputs, output) -> None:
    c, weight, bias, ctx.activate = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(c, weight)


def _gradients(ctx, grad):
    wanted = [bool(each) for each in ctx.needs_input_grad[:3]]
    found = torch.ops.surgery.modulation_backward(grad, *ctx.saved_tensors, ctx.activate, wanted)
    return *(each if want else None for each, want in zip(found, wanted, strict=True)), None


def _setup_packed(ctx, inputs, output) -> None:
    c, packed, bias, ctx.outputs, ctx.activate = inputs
    ctx.save_for_backward(c, packed)


def _gradients_packed(ctx, grad):
    c, packed = ctx.saved_tensors
    wanted = [bool(each) for each in ctx.needs_input_grad[:3]]
    weight = cpu.unpack(packed, ctx.outputs, c.shape[-1])
    dc, dweight, dbias = torch.ops.surgery.modulation_backward(grad, c, weight, ctx.activate, wanted)
    found = (dc, cpu.pack(dweight) if wanted[1] else None, dbias)
    return *(each if want else None for each, want in zip(found, wanted, strict=True)), None, None


def _flops(c, weight, bias, activate) -> int:
    return 2 * c.numel() * weight.shape[0]


def _flops_packed(c, packed, bias, outputs, activate) -> int:
    return 2 * c.numel() * outputs


def _flops_backward(grad, c, weight, activate, wanted) -> int:
    return 2 * c.numel() * weight.shape[0] * (wanted[0] + wanted[1])


operator(
    "modulation_backward(Tensor grad, Tensor c, Tensor weight, bool activate, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
operator(
    "modulation(Tensor c, Tensor weight, Tensor? bias, bool activate) -> Tensor",
    cpu=_forward(*NATIVE, REFERENCE, TRITON),
    cuda=_forward(TRITON, NATIVE[1], REFERENCE),
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
operator(
    "modulation_packed(Tensor c, Tensor packed, Tensor? bias, int outputs, bool activate) -> Tensor",
    cpu=_forward_packed(*NATIVE_PACKED, REFERENCE_PACKED, TRITON_PACKED),
    cuda=_forward_packed(TRITON_PACKED, NATIVE_PACKED[1], REFERENCE_PACKED),
    fake=_fake_packed,
    flops=_flops_packed,
    setup=_setup_packed,
    backward=_gradients_packed,
)
