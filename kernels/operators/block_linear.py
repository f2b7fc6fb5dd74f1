"""`surgery::block_linear`: a linear layer whose weight keeps only some of its blocks."""

from typing import Any

import torch
from surgery.kernels.cpu import block_linear as cpu
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.block_weight import BlockWeight
from surgery.kernels.operators.define import operator
from surgery.kernels.reference import block_linear as reference
from surgery.kernels.tuning.pick import interpreted
from torch import Tensor

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def block_linear(x: Tensor, weight: BlockWeight, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b over the kept blocks of W alone.

    x [..., inputs], any strides, bias [outputs] → [..., outputs]; one dtype of fp32, bf16, fp16 (fp64 without a GPU
    kernel), sums in fp32. Differentiable in x, `weight.values` and bias; the gradient of values exists for the kept
    blocks only. Outputs and inputs need not be multiples of the block; a row without blocks gives its bias. GPU kernels
    take square blocks, other shapes run as products of gathered columns there.

    Raises ValueError for shapes, dtypes or devices that do not fit; the index is trusted (`BlockWeight.validate`). The
    reference is `kernels/reference/block_linear.py`; source: BCSR with a transposed index, MegaBlocks, arXiv 2211.15841.
    """
    if x.dim() < 1 or x.shape[-1] != weight.inputs:
        raise ValueError(f"x is [..., {weight.inputs}], got {list(x.shape)}")
    return torch.ops.surgery.block_linear(x, weight.values, bias, weight.tensors(), weight.outputs)


def check(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], outputs: int) -> None:
    """Raise ValueError unless the arguments of the operator fit together; the entries of the index are trusted."""
    if len(index) != 5 or any(each.dtype != torch.int32 or each.dim() != 1 for each in index):
        raise ValueError("index is ptr, idx, ptr_t, idx_t and map_t, int32 vectors")
    if values.dim() != 3 or any(index[place].numel() != values.shape[0] for place in (1, 3, 4)):
        raise ValueError(f"values are [n, height, width], a block for each of idx, got {list(values.shape)}")
    rows, columns = -(-outputs // values.shape[1]), -(-x.shape[-1] // values.shape[2])
    if (index[0].numel(), index[2].numel()) != (rows + 1, columns + 1):
        raise ValueError(
            f"{outputs} × {x.shape[-1]} is {rows} × {columns} blocks of {list(values.shape[1:])}, the index is laid out "
            f"for {index[0].numel() - 1} × {index[2].numel() - 1}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias is [{outputs}], got {list(bias.shape)}")
    others = [values] if bias is None else [values, bias]
    if not x.dtype.is_floating_point or any(each.dtype != x.dtype for each in others):
        raise ValueError(f"one floating dtype for all, got {x.dtype}, {', '.join(str(each.dtype) for each in others)}")
    if any(each.device != x.device for each in [*others, *index]):
        raise ValueError(f"x is on {x.device}, values, bias or index are not")


def _native(x: Tensor, *rest: Any) -> str | None:
    return cpu.refuse(x.dtype)


def _no_gpu_kernel(x: Tensor, values: Tensor) -> str | None:
    if x.device.type == "cpu" and not interpreted():
        return "needs a GPU (or TRITON_INTERPRET=1)"
    if x.dtype not in TRITON_DTYPES:
        return f"takes fp32, bf16 and fp16, not {x.dtype}"
    height, width = values.shape[1:]
    return None if height == width else f"takes square blocks, not {height} × {width}"


def _triton_forward(*args: Any) -> Tensor:
    from surgery.kernels.triton.block_linear import block_linear as launch

    return launch(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from surgery.kernels.triton.block_linear_backward import block_linear_backward as launch

    return launch(*args)


def _reference_backward(grad, x, values, index, wanted):
    made = reference.block_linear_backward(grad, x, values, index)
    return tuple(each if want else x.new_empty(0) for each, want in zip(made, wanted, strict=True))


FORWARD = {
    "native": Backend("native", cpu.forward, _native),
    "torch": Backend("torch", cpu.forward_torch, never),
    "reference": Backend("reference", reference.block_linear, never),
    "triton": Backend("triton", _triton_forward, lambda x, values, *rest: _no_gpu_kernel(x, values)),
}
BACKWARD = {
    "native": Backend("native", cpu.backward, _native),
    "torch": Backend("torch", cpu.backward_torch, never),
    "reference": Backend("reference", _reference_backward, never),
    "triton": Backend("triton", _triton_backward, lambda grad, x, values, *rest: _no_gpu_kernel(x, values)),
}
ON_CPU, ON_CUDA = ("native", "torch", "reference", "triton"), ("triton", "torch", "reference")


def _forward(order: tuple[str, ...]):
    backends = tuple(FORWARD[name] for name in order)

    def checked(*args: Any) -> Tensor:
        check(*args)
        return run("block_linear", backends, *args)

    return checked


def _backward(order: tuple[str, ...]):
    backends = tuple(BACKWARD[name] for name in order)
    return lambda *args: run("block_linear_backward", backends, *args)


def _fake(x, values, bias, index, outputs):
    return x.new_empty((*x.shape[:-1], outputs))


def _fake_backward(grad, x, values, index, wanted):
    shapes = (x.shape, values.shape, grad.shape[-1:])
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))


def _setup(ctx, inputs, output) -> None:
    x, values, bias, index, _ = inputs
    ctx.save_for_backward(x, values, *index)


def _gradients(ctx, grad):
    x, values, *index = ctx.saved_tensors
    wanted = [bool(each) for each in ctx.needs_input_grad[:3]]
    found = torch.ops.surgery.block_linear_backward(grad, x, values, index, wanted)
    return *(each if want else None for each, want in zip(found, wanted, strict=True)), [None] * 5, None


def _flops(x, values, bias, index, outputs) -> int:
    """Multiplications and additions of the kept blocks."""
    return 2 * values.numel() * (x.numel() // max(1, x.shape[-1]))


def _flops_backward(grad, x, values, index, wanted) -> int:
    return _flops(x, values, None, index, 0) * (wanted[0] + wanted[1])


operator(
    "block_linear_backward(Tensor grad, Tensor x, Tensor values, Tensor[] index, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_backward(ON_CPU),
    cuda=_backward(ON_CUDA),
    fake=_fake_backward,
    flops=_flops_backward,
)
OPERATOR = operator(
    "block_linear(Tensor x, Tensor values, Tensor? bias, Tensor[] index, int outputs) -> Tensor",
    cpu=_forward(ON_CPU),
    cuda=_forward(ON_CUDA),
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
