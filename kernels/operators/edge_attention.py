"""`surgery::edge_attention`: attention over listed edges, down to a few keys of each query."""

from typing import Any

import torch
from surgery.kernels.cpu import edge_attention as native
from surgery.kernels.cpu import edge_attention_torch as plain
from surgery.kernels.layouts.edges import Edges
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference import edge_attention as reference
from surgery.kernels.tuning.pick import interpreted
from torch import Tensor

NORMALIZE = ("kept", "all")
WIDEST_TRITON = 256


def edge_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges: Edges,
    *,
    scale: float | None = None,
    normalize: str = "kept",
    causal: bool = False,
) -> Tensor:
    """out_i = Σ_{j kept for i} exp(s_ij - lse_i) v_j, with s_ij = scale · q_i · k_j.

    q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D], any strides, fp32, bf16, fp16 (fp64 without a GPU kernel); query head h
    reads key head h // (Hq / Hkv). `edges` lists the keys of each query, for all heads, per head, or per batch and
    head. scale None is D ** -0.5. Returns [B, Hq, Sq, D]; a query without edges gets 0, and so do its gradients.

    normalize="kept"  lse_i is over the kept keys: softmax attention under a mask. Work and memory grow with the edges.
    normalize="all"   lse_i is over all keys (`causal`: those with j <= i + Sk - Sq), and the kept weights are not
                      renormalised: they sum to less than 1. Models that were trained to drop edges after a full
                      softmax compute this; the two are different mathematics, not two speeds of the same. All of
                      q · kᵀ has to be computed for it, in tiles, so it cannot be much over twice as fast as dense
                      attention. With "kept" the list alone decides and `causal` is not read.

    Raises ValueError for shapes, devices or a layout that do not fit. The reference is
    `kernels/reference/edge_attention.py`; the denominators follow SPARTAN, arXiv 2512.05865.
    """
    if (edges.queries, edges.keys) != (q.shape[-2], k.shape[-2]):
        raise ValueError(
            f"edges are laid out for {edges.queries} queries × {edges.keys} keys, got {q.shape[-2]} × {k.shape[-2]}"
        )
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return torch.ops.surgery.edge_attention(q, k, v, edges.tensors(), factor, normalize, causal)[0]


def check(q: Tensor, k: Tensor, v: Tensor, edges: list[Tensor], normalize: str) -> None:
    """Raise ValueError unless the arguments of the operator fit together; the entries of edges are trusted."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize is one of {', '.join(NORMALIZE)}, not {normalize!r}")
    if any(each.dim() != 4 for each in (q, k, v)):
        raise ValueError(f"q, k and v are [batch, heads, rows, head dim], got {shapes}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"k and v have one shape, and q's batch and head dim: got {shapes}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k and v have one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if len(edges) != 5:
        raise ValueError(f"edges are five tensors (ptr, idx, ptr_t, idx_t, map_t), got {len(edges)}")
    if any(each.device != q.device for each in (k, v, *edges)):
        raise ValueError(f"q is on {q.device}, k, v or edges are not")
    _check_patterns(q, k, edges)


def _check_patterns(q: Tensor, k: Tensor, edges: list[Tensor]) -> None:
    counts = {1, q.shape[1], q.shape[0] * q.shape[1]}
    ends = (edges[0].numel() - 1, edges[2].numel() - 1)
    if ends not in {(count * q.shape[2], count * k.shape[2]) for count in counts}:
        raise ValueError(
            f"edges point to {ends[0]} rows and {ends[1]} columns: with {q.shape[2]} queries, {k.shape[2]} keys, "
            f"batch {q.shape[0]} and {q.shape[1]} heads that is not 1, heads, or batch · heads patterns"
        )


def _no_gpu_kernel(q: Tensor, *rest: Any) -> str | None:
    if q.device.type == "cpu" and not interpreted():
        return "needs a GPU (or TRITON_INTERPRET=1)"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes fp32, bf16 and fp16, not {q.dtype}"
    return None if q.shape[3] <= WIDEST_TRITON else f"takes head dims up to {WIDEST_TRITON}, not {q.shape[3]}"


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor]:
    from surgery.kernels.triton.edge_attention_forward import forward

    return forward(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from surgery.kernels.triton.edge_attention_backward import backward

    return backward(*args)


def _reference_backward(grad_out, grad_lse, q, k, v, out, lse, *rest: Any) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [each.detach().requires_grad_() for each in (q, k, v)]
        again, log_sum = reference.edge_attention(*inputs, *rest)
        given = torch.zeros_like(log_sum) if grad_lse is None else grad_lse.masked_fill(log_sum.isinf(), 0)
        return torch.autograd.grad((again, log_sum), inputs, (grad_out, given))


def _after_query(refuse):
    """The refusal of a forward, asked of a backward: q is its third argument."""
    return lambda grad_out, grad_lse, q, *rest: refuse(q)


def _ordered(cpu: bool, made: dict[str, Any], refusals: dict[str, Any]) -> tuple[Backend, ...]:
    order = ("native", "torch", "reference", "triton") if cpu else ("triton", "torch", "reference")
    return tuple(Backend(name, made[name], refusals.get(name, never)) for name in order)


FORWARDS = {
    "native": native.forward,
    "torch": plain.forward,
    "reference": reference.edge_attention,
    "triton": _triton_forward,
}
BACKWARDS = {
    "native": native.backward,
    "torch": plain.backward,
    "reference": _reference_backward,
    "triton": _triton_backward,
}
REFUSALS = {"native": native.refuse, "triton": _no_gpu_kernel}
REFUSALS_BACKWARD = {name: _after_query(refuse) for name, refuse in REFUSALS.items()}


def _forward(cpu: bool):
    backends = _ordered(cpu, FORWARDS, REFUSALS)

    def checked(q, k, v, edges, scale, normalize, causal):
        check(q, k, v, edges, normalize)
        return run("edge_attention", backends, q, k, v, edges, scale, normalize, causal)

    return checked


def _backward(cpu: bool):
    backends = _ordered(cpu, BACKWARDS, REFUSALS_BACKWARD)
    return lambda *args: run("edge_attention_backward", backends, *args)


def _fake(q, k, v, edges, scale, normalize, causal):
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(grad_out, grad_lse, q, k, v, out, lse, edges, scale, normalize, causal):
    return tuple(torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))


def _flops(q, k, v, edges, scale, normalize, causal) -> int:
    """Multiplications and additions: two products of D per edge and head, or all of q · kᵀ besides."""
    batch, heads, queries, dim = q.shape
    return 4 * dim * _pairs(q, edges) + _dense(q, k, causal, 2) * (normalize == "all")


def _flops_backward(grad_out, grad_lse, q, k, v, out, lse, edges, scale, normalize, causal) -> int:
    return 10 * q.shape[3] * _pairs(q, edges) + _dense(q, k, causal, 6) * (normalize == "all")


def _pairs(q: Tensor, edges: list[Tensor]) -> int:
    """Edges over all batches and heads."""
    batch, heads, queries = q.shape[:3]
    patterns = (edges[0].numel() - 1) // queries if queries else 1
    return edges[1].numel() * batch * heads // max(patterns, 1)


def _dense(q: Tensor, k: Tensor, causal: bool, products: int) -> int:
    return products * q.numel() * k.shape[2] // (2 if causal else 1)


def _setup(ctx, inputs, output) -> None:
    q, k, v, edges, ctx.scale, ctx.normalize, ctx.causal = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, *edges)


def _gradients(ctx, grad_out, grad_lse):
    q, k, v, out, lse, *edges = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    rest = (edges, ctx.scale, ctx.normalize, ctx.causal)
    grads = torch.ops.surgery.edge_attention_backward(grad_out, grad_lse, q, k, v, out, lse, *rest)
    return *grads, [None] * len(edges), None, None, None


operator(
    "edge_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor[] edges, float scale, str normalize, bool causal) -> (Tensor, Tensor, Tensor)",
    cpu=_backward(cpu=True),
    cuda=_backward(cpu=False),
    fake=_fake_backward,
    flops=_flops_backward,
)
operator(
    "edge_attention(Tensor q, Tensor k, Tensor v, Tensor[] edges, float scale, str normalize, bool causal) "
    "-> (Tensor out, Tensor lse)",
    cpu=_forward(cpu=True),
    cuda=_forward(cpu=False),
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
