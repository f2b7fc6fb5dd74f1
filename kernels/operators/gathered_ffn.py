"""`surgery::gathered_ffn`: a feed-forward layer of which only listed blocks of channels are computed."""

from dataclasses import dataclass
from typing import Any

import torch
from surgery.kernels.cpu import gathered_ffn as cpu
from surgery.kernels.cpu.gathered_ffn_backward import gathered_backward
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS, kept_channels
from surgery.kernels.reference.gathered_ffn import gathered_ffn as reference
from torch import Tensor

BLOCKS = (32, 64, 128)
DENSE_ABOVE_ON_GPU = 0.6
"""By arithmetic, not measured: past it the kept rows of many tokens are most of the weights anyway."""


@dataclass(frozen=True)
class FeedForward:
    """The weights of y = act(x upᵀ + up_bias) downᵀ + down_bias, or with act(x gateᵀ + gate_bias) (x upᵀ + up_bias).

    up, gate    [f, d]
    down        [d, f], as a linear layer stores it: what dense products like
    down_t      [f, d], a row for each channel: what gathering likes, up to twice as fast as by `down`
    biases      up_bias, gate_bias [f], down_bias [d]
    activation  relu, relu2 (relu squared), gelu, gelu_tanh, silu

    packed      up, gate and down once more, as dense products on this processor are fastest (`with_packed`)

    One of down and down_t is enough; with both, each way of computing has its own (`with_rows` adds down_t).
    Raises ValueError for shapes that do not fit and for an unknown activation.
    """

    up: Tensor
    down: Tensor | None = None
    gate: Tensor | None = None
    down_t: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None
    activation: str = "gelu"
    packed: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if self.down is None and self.down_t is None:
            raise ValueError("a feed-forward needs down [d, f] or down_t [f, d]")
        if self.gate is None and self.gate_bias is not None:
            raise ValueError("gate_bias without a gate")
        f, d = self.up.shape
        shapes = {"gate": (f, d), "down": (d, f), "down_t": (f, d)}
        for name, shape in (shapes | {"up_bias": (f,), "gate_bias": (f,), "down_bias": (d,)}).items():
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name} is {list(given.shape)}, expected {list(shape)} beside up [{f}, {d}]")

    def with_rows(self) -> "FeedForward":
        """The same with `down_t` laid out: half as much memory again, or a third if gated."""
        return self if self.down_t is not None else FeedForward(**(vars(self) | {"down_t": self.down.t().contiguous()}))

    def with_packed(self, rows: int = 64) -> "FeedForward":
        """The same with `packed`, laid out once, for batches of `rows`: as much memory again.

        Where nearly all is kept, `gathered_ffn` then is as fast as a compiled dense layer, whose weights are laid out
        too. The layout for 64 rows serves any 4 or more as well as one of their own. For inference on a CPU in fp32 and
        bf16; itself elsewhere.
        """
        if not cpu.packable(self.up):
            return self
        weights = (self.up, self.gate, self.columns_down)
        packed = tuple(None if each is None else cpu.pack(each.detach(), rows) for each in weights)
        return FeedForward(**(vars(self) | {"packed": packed}))

    @property
    def rows_down(self) -> Tensor:
        return self.down.t() if self.down_t is None else self.down_t

    @property
    def columns_down(self) -> Tensor:
        return self.down_t.t() if self.down is None else self.down


def gathered_ffn(
    x: Tensor,
    weights: FeedForward,
    blocks: Tensor,
    *,
    block: int = 64,
    dense_above: float | None = None,
    check: bool = True,
) -> Tensor:
    """y = act(x up_kᵀ) [gated: act(x gate_kᵀ) (x up_kᵀ)] down_k + down_bias, k: the channels of the listed blocks.

    x            [..., d]; all leading dims are rows and share one list: for rows with lists of their own see `union`
    blocks       int32 [N], sorted, each once, filled up with -1; block b is channels b · block to (b + 1) · block - 1
    block        32, 64 or 128 channels
    dense_above  kept share of the blocks above which all channels are computed and the others set to zero: the same
                 result, faster there. None: as measured for the device and rows; 1.0: never
    check        read the list and refuse one that is unsorted, repeats or leaves the range. Not when traced; on a GPU
                 it waits for the device, so turn it off there for lists from `union` or `probe_select`

    fp32, bf16, fp16, fp64; sums in fp32 (fp64). Gradients of weights are dense, zero where nothing was kept. No listed
    block gives down_bias. Raises ValueError for what does not fit.

    Reference: `surgery.kernels.reference.gathered_ffn`. Source: contextual sparsity of Deja Vu (Liu et al., 2023,
    arXiv 2310.17157).
    """
    _check(x, weights, blocks, block)
    total = -(-weights.up.shape[0] // block)
    kept = min(blocks.shape[0], total)
    if check and not torch.compiler.is_compiling():
        kept = check_blocks(blocks, total)
    rows = x.reshape(-1, x.shape[-1])
    inputs = (rows, weights.up, weights.gate, weights.rows_down)
    biases = (weights.up_bias, weights.gate_bias, weights.down_bias)
    packed = weights.packed if _may_be_packed(x, weights) else None
    limit = _dense_above(inputs, packed is not None) if dense_above is None else dense_above
    if kept > limit * total:
        every = kept == total and check and not torch.compiler.is_compiling()
        mask = None if every else kept_channels(blocks, block, weights.up.shape[0])
        if packed is not None:
            return cpu.dense_packed(rows, packed, biases, mask, weights.activation).reshape(x.shape)
        return cpu.dense(*inputs[:3], weights.columns_down, *biases, mask, weights.activation).reshape(x.shape)
    return OPERATOR(*inputs, *biases, blocks, block, weights.activation).reshape(x.shape)


def union(blocks_per_row: Tensor, size: int | None = None) -> Tensor:
    """The blocks that any row lists: int32 [T, K] with -1 for nothing → int32 [N], sorted, each once.

    `size` fixes the length, filled up with -1, so that shapes do not depend on data. Raises ValueError if it is too small.
    """
    listed = torch.unique(blocks_per_row)
    listed = listed[listed >= 0].to(torch.int32)
    if size is None:
        return listed
    if listed.numel() > size:
        raise ValueError(f"the union of {listed.numel()} blocks does not fit in {size}")
    return torch.nn.functional.pad(listed, (0, size - listed.numel()), value=-1)


def check_blocks(blocks: Tensor, total: int) -> int:
    """How many blocks are listed. Raises ValueError at the first that is out of range, unsorted, repeated or after a -1."""
    listed = blocks.tolist()
    kept = listed.index(-1) if -1 in listed else len(listed)
    for place, number in enumerate(listed):
        before = listed[place - 1] if place else -1
        if place >= kept and number == -1:
            continue
        if place >= kept:
            raise ValueError(f"blocks[{place}] = {number} follows a -1")
        if not 0 <= number < total:
            raise ValueError(f"blocks[{place}] = {number} is out of range ({total} blocks)")
        if number <= before:
            raise ValueError(f"blocks[{place}] = {number} {'is a duplicate' if number == before else 'is unsorted'}")
    return kept


def _check(x: Tensor, weights: FeedForward, blocks: Tensor, block: int) -> None:
    if x.dim() < 1 or x.shape[-1] != weights.up.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, expected [..., {weights.up.shape[1]}]")
    for name, each in vars(weights).items():
        if isinstance(each, Tensor) and each.dtype != x.dtype:
            raise ValueError(f"{name} is {each.dtype}, x is {x.dtype}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"x is {x.dtype}: expected a floating dtype")
    if blocks.dtype != torch.int32 or blocks.dim() != 1:
        raise ValueError(f"blocks is {blocks.dtype} {list(blocks.shape)}, expected int32 [N]")
    if block not in BLOCKS:
        raise ValueError(f"blocks of {block} channels: expected one of {BLOCKS}")


def _may_be_packed(x: Tensor, weights: FeedForward) -> bool:
    """Whether laid-out weights can be used: not in a trace, which cannot hold them, nor where a gradient is wanted."""
    if torch.compiler.is_compiling() or not x.numel():
        return False
    held = (x, *(each for each in vars(weights).values() if isinstance(each, Tensor)))
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in held))


def _dense_above(inputs: tuple[Any, ...], packed: bool) -> float:
    x = inputs[0]
    if x.device.type == "cuda":
        return DENSE_ABOVE_ON_GPU
    traced = torch.compiler.is_compiling()
    return 1.0 if traced else cpu.dense_above(x, cpu.refuse_native(*inputs) is None, packed)


def _run_triton(*arguments: Any) -> Tensor:
    from surgery.kernels.triton.gathered_ffn_down import gathered_ffn as launch

    return launch(*arguments)


def _refuse_triton(x: Tensor, *arguments: Any) -> str | None:
    block = arguments[7]
    if block % min(BLOCKS):
        return f"blocks of {block} channels are not a multiple of {min(BLOCKS)}"
    return "fp64 has no tiles" if x.dtype == torch.float64 else None


TORCH = Backend("torch", cpu.gathered, never)
REFERENCE = Backend("reference", reference, never)
ON_CPU = (Backend("native", cpu.native, cpu.refuse_native), TORCH, REFERENCE)
ON_CUDA = (Backend("triton", _run_triton, _refuse_triton), TORCH, REFERENCE)


def _on_cpu(*arguments: Any) -> Tensor:
    return run("gathered_ffn", ON_CPU, *arguments)


def _on_cuda(*arguments: Any) -> Tensor:
    return run("gathered_ffn", ON_CUDA, *arguments)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape)


def _flops(x: Tensor, up: Tensor, gate: Tensor | None, down_t: Tensor, *rest: Any) -> int:
    """Two or three products over every listed channel, as if no slot were empty."""
    blocks, block = rest[3], rest[4]
    return 2 * (2 if gate is None else 3) * x.numel() * min(blocks.numel() * block, up.shape[0])


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *weights, blocks, block, activation, needs = rest
    shapes = [each if each is None else each.shape for each in (x, *weights)] + [x.shape[1:]]
    return tuple(x.new_empty(shape if needed else (0,)) for shape, needed in zip(shapes, needs, strict=True))


def _flops_backward(grad: Tensor, x: Tensor, up: Tensor, gate: Tensor | None, *rest: Any) -> int:
    """What is computed again, the hidden gradient, and a product for x and for each weight that wants one."""
    *_, blocks, block, activation, needs = rest
    ways = 1 if gate is None else 2
    products = ways + 1 + ways * needs[0] + sum(needs[1:4])
    return 2 * products * x.numel() * min(blocks.numel() * block, up.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, up, gate, down_t, up_bias, gate_bias, down_bias, blocks, ctx.block, ctx.activation = inputs
    ctx.save_for_backward(x, up, gate, down_t, up_bias, gate_bias, blocks)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:7])
    made = torch.ops.surgery.gathered_ffn_backward(grad, *ctx.saved_tensors, ctx.block, ctx.activation, needs)
    return *(each if needed else None for each, needed in zip(made, needs, strict=True)), None, None, None


OPERATOR_BACKWARD = operator(
    "gathered_ffn_backward(Tensor grad, Tensor x, Tensor up, Tensor? gate, Tensor down_t, Tensor? up_bias, "
    "Tensor? gate_bias, Tensor blocks, int block, str activation, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=gathered_backward,
    cuda=gathered_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
OPERATOR = operator(
    "gathered_ffn(Tensor x, Tensor up, Tensor? gate, Tensor down_t, Tensor? up_bias, Tensor? gate_bias, "
    "Tensor? down_bias, Tensor blocks, int block, str activation) -> Tensor",
    cpu=_on_cpu,
    cuda=_on_cuda,
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
