"""`surgery::block_attention` and its backward: attention over the kept blocks of a `Blocks`, bits and all."""

from typing import Any

import torch
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference import block_attention as reference
from surgery.kernels.tuning.pick import interpreted
from torch import Tensor


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, *, scale: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """out_i = Σ_{j kept for i} exp(s_ij - lse_i) v_j, with s_ij = scale · q_i · k_j and lse_i over the kept keys.

    q       [B, Hq, Sq, D], any strides; fp32, bf16, fp16, and fp64 where no GPU kernel is needed
    k, v    [B, Hkv, Sk, D]; query head h reads key head h // (Hq / Hkv), nothing is repeated in memory
    blocks  a `Blocks` for Sq × Sk with 1 (shared), Hq or B · Hq patterns: causal, windows, sequences packed end to end
            and masks of single pairs are all blocks and bits
    scale   positive; D ** -0.5 if None

    Returns out [B, Hq, Sq, D], or (out, lse) with lse fp32 [B, Hq, Sq] (fp64 for fp64). A query without a key gives 0
    and -inf, its gradients are 0. q, k and v have gradients, of out and of lse. Two runs give the same bits.

    Raises ValueError for shapes, dtypes, devices or patterns that do not fit. Reference:
    `surgery.kernels.reference.block_attention`. Source: FlashAttention-2 (Dao, 2023).
    """
    check_tensors(q, k, v)
    check_blocks(q, k, blocks)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not factor > 0:
        raise ValueError(f"scale is {factor}: it has to be positive (negate q for a negative one)")
    out, lse = OPERATOR(q, k, v, blocks.tensors(), *blocks.block, factor)
    return (out, lse) if return_lse else out


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless q, k and v fit together."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"{_shapes(q, k, v)}: expected [batch, heads, rows, head dim]; unsqueeze what is missing")
    if k.shape != v.shape:
        raise ValueError(
            f"{_shapes(q, k, v)}: k and v have to have one shape; pad the head dim of the smaller with zeros"
        )
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q has batch {q.shape[0]}, k has {k.shape[0]}; expand the smaller one")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q has head dim {q.shape[3]}, k has {k.shape[3]}; project both to one")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads evenly; make it a multiple")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: cast them to one floating dtype")
    if not q.device == k.device == v.device:
        raise ValueError(f"q is on {q.device}, k on {k.device}, v on {v.device}: move them to one device")


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"


def check_blocks(q: Tensor, k: Tensor, blocks: Blocks) -> None:
    """Raise ValueError unless the layout is one for q and k."""
    queries, keys, (batch, heads) = q.shape[2], k.shape[2], q.shape[:2]
    if blocks.queries != queries or blocks.keys != keys:
        raise ValueError(
            f"blocks are laid out for {blocks.queries} queries × {blocks.keys} keys, q and k have {queries} × {keys}; "
            "make the layout for these lengths"
        )
    if blocks.patterns != 1 and blocks.patterns != heads and blocks.patterns != batch * heads:
        raise ValueError(
            f"blocks hold {blocks.patterns} patterns, q has {heads} heads in a batch of {batch}; make 1 pattern for "
            f"all, {heads} (one per head) or {batch * heads} (one per batch and head)"
        )
    if blocks.full_ptr.device != q.device:
        raise ValueError(
            f"blocks are on {blocks.full_ptr.device}, q is on {q.device}; use blocks.to({str(q.device)!r})"
        )


def _cpu() -> Any:
    from surgery.kernels.cpu import block_attention as cpu

    return cpu


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor]:
    from surgery.kernels.triton.block_attention_forward import block_attention_forward

    return block_attention_forward(*args)


def _triton_backward(grad_out, grad_lse, q, k, v, out, lse, layout, block, scale) -> tuple[Tensor, Tensor, Tensor]:
    from surgery.kernels.triton.block_attention_dkv import block_attention_dkv
    from surgery.kernels.triton.block_attention_dq import block_attention_dq

    dq, delta = block_attention_dq(grad_out, grad_lse, q, k, v, out, lse, layout, block, scale)
    return dq, *block_attention_dkv(grad_out, q, k, v, lse, delta, layout, block, scale)


def _refuse_triton(q: Tensor, k: Tensor, v: Tensor, layout: list[Tensor], block: tuple[int, int], scale: float):
    if q.device.type == "cpu" and not interpreted():
        return "needs a GPU (or TRITON_INTERPRET=1)"
    from surgery.kernels.triton._blocks import refuse_triton

    return refuse_triton(q, block)


def _refuse_native(*args: Any) -> str | None:
    return _cpu().refuse_native(*args)


def _of_backward(refuse):
    """The refusal of a forward, asked with the arguments of a backward."""
    return lambda grad_out, grad_lse, q, k, v, out, lse, *rest: refuse(q, k, v, *rest)


FORWARDS = {
    "native": Backend("native", lambda *args: _cpu().native_forward(*args), _refuse_native),
    "torch": Backend("torch", lambda *args: _cpu().torch_forward(*args), never),
    "reference": Backend("reference", reference.forward, never),
    "triton": Backend("triton", _triton_forward, _refuse_triton),
}
BACKWARDS = {
    "native": Backend("native", lambda *args: _cpu().native_backward(*args), _of_backward(_refuse_native)),
    "torch": Backend("torch", lambda *args: _cpu().torch_backward(*args), never),
    "reference": Backend("reference", reference.backward, never),
    "triton": Backend("triton", _triton_backward, _of_backward(_refuse_triton)),
}
ON_CPU = ("native", "torch", "reference", "triton")
ON_CUDA = ("triton", "torch", "reference")


def _forward(order: tuple[str, ...]):
    backends = [FORWARDS[name] for name in order]

    def forward(q, k, v, layout, block_q, block_k, scale):
        return run("block_attention", backends, q, k, v, layout, (block_q, block_k), scale)

    return forward


def _backward(order: tuple[str, ...]):
    backends = [BACKWARDS[name] for name in order]

    def backward(grad_out, grad_lse, q, k, v, out, lse, layout, block_q, block_k, scale):
        given = (grad_out, grad_lse, q, k, v, out, lse, layout, (block_q, block_k), scale)
        return run("block_attention_backward", backends, *given)

    return backward


def _fake(q, k, v, layout, block_q, block_k, scale):
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:3], dtype=reference.statistics_dtype(q.dtype), device=q.device)


def _fake_backward(grad_out, grad_lse, q, k, v, out, lse, layout, block_q, block_k, scale):
    return tuple(torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))


def kept_area(q: Tensor, layout: list[Tensor], block_q: int, block_k: int) -> int:
    """Pairs in kept blocks, over all batches and heads, from the shapes of the index alone: none is read."""
    batch, heads, queries = q.shape[:3]
    patterns = (layout[0].shape[0] - 1) // max(-(-queries // block_q), 1)
    blocks = layout[1].shape[0] + layout[3].shape[0]
    return blocks * block_q * block_k * batch * heads // max(patterns, 1)


def _flops(q, k, v, layout, block_q, block_k, scale) -> int:
    """Two products of D multiplications and additions per pair in a kept block."""
    return 4 * q.shape[3] * kept_area(q, layout, block_q, block_k)


def _flops_backward(grad_out, grad_lse, q, k, v, out, lse, layout, block_q, block_k, scale) -> int:
    """Five products, as for dense attention: what is made twice counts once."""
    return 10 * q.shape[3] * kept_area(q, layout, block_q, block_k)


def _setup(ctx, inputs, output) -> None:
    q, k, v, layout, *ctx.rest = inputs
    out, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, *layout)


def _gradients(ctx, grad_out, grad_lse):
    q, k, v, out, lse, *layout = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = torch.ops.surgery.block_attention_backward(grad_out, grad_lse, q, k, v, out, lse, layout, *ctx.rest)
    return *grads, [None] * len(layout), None, None, None


operator(
    "block_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor[] layout, int block_q, int block_k, float scale) -> (Tensor, Tensor, Tensor)",
    cpu=_backward(ON_CPU),
    cuda=_backward(ON_CUDA),
    fake=_fake_backward,
    flops=_flops_backward,
)
OPERATOR = operator(
    "block_attention(Tensor q, Tensor k, Tensor v, Tensor[] layout, int block_q, int block_k, float scale) "
    "-> (Tensor out, Tensor lse)",
    cpu=_forward(ON_CPU),
    cuda=_forward(ON_CUDA),
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
