"""`surgery::gated_attention`: softmax over all keys, then a learned gate on each edge, and how many edges it keeps."""

from typing import Any, NamedTuple

import torch
from surgery.kernels.cpu import gated_attention as cpu
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.operators.widths import as_wide, differ, one_width
from surgery.kernels.reference import gated_attention as reference
from surgery.kernels.tuning.pick import interpreted
from torch import Tensor

GATES = ("hard", "sampled", "soft")
WIDEST_TRITON = 256


class Gated(NamedTuple):
    """What gated attention returns; expected and kept are None if they were not asked for."""

    out: Tensor  # [B, Hq, Sq, Dv]
    expected: Tensor | None  # [B, Hq]: Σ sigmoid(logit + bias), differentiable
    kept: Tensor | None  # [B, Hq], int64: how many edges have logit + bias > 0
    lse: Tensor  # [B, Hq, Sq], differentiable


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    gates: str = "hard",
    temperature: float = 1.0,
    seed: int | Tensor | None = None,
    key_mask: Tensor | None = None,
    count: bool = True,
) -> Gated:
    """out_i = Σ_j softmax_j(s)_ij · g_ij · v_j, not renormalised, with s_ij = scale · q_i · k_j over all keys seen.

    The gate reads z_ij = s_ij + bias_h, the same logit:
    gates="hard"     g = [z > 0], a constant for gradients: evaluation
    gates="sampled"  g = [z + n > 0], backward as if it were sigmoid((z + n) / temperature): training. n is logistic
                     noise, a hash of (seed, batch and head, query, key): one seed, one draw, on every device
    gates="soft"     g = sigmoid((z + n) / temperature) both ways; without a seed, n = 0
    expected = Σ sigmoid(z) is what a training loss makes small; kept = Σ [z > 0] is what a report counts.

    q [B, Hq, Sq, D], k [B, Hkv, Sk, D] and v [B, Hkv, Sk, Dv], mostly of one width, any strides, one dtype of fp32,
    bf16, fp16, fp64; query head h reads key head h // (Hq / Hkv). bias [Hq] or [B · Hq], any floating dtype. causal:
    keys j <= i + Sk - Sq. key_mask bool [B, Sk], True where a key is seen; hidden keys and values still have to be
    finite. seed: an int, or an int64 tensor of one element, which a compiled graph takes without compiling anew. A query
    that sees no key gets 0, and so do its gradients. No memory of the size Sq × Sk is taken. count=False, with hard
    gates, leaves out expected and kept and the exponential they cost.

    Raises ValueError for arguments that do not fit. All of q · kᵀ is needed, so hard gates can be at most about twice
    as fast as dense attention. The reference is `kernels/reference/gated_attention.py`; source: arXiv 2512.05865.
    """
    if isinstance(seed, int):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    count = count or gates != "hard"
    out, lse, expected, kept = torch.ops.surgery.gated_attention(
        q, k, v, bias, seed, key_mask, factor, causal, gates, float(temperature), count
    )
    return Gated(out, expected if count else None, kept if count else None, lse)


def check(q, k, v, bias, seed, key_mask, scale, causal, gates, temperature, count) -> None:
    """Raise ValueError unless the arguments of the operator fit together."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if gates not in GATES:
        raise ValueError(f"gates is one of {', '.join(GATES)}, not {gates!r}")
    if any(each.dim() != 4 for each in (q, k, v)):
        raise ValueError(f"q, k and v are [batch, heads, rows, head dim], got {shapes}")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"k and v have one shape but for the last axis, k has q's batch and head dim: got {shapes}")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k and v have one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if bias.dim() != 1 or bias.numel() not in (q.shape[1], q.shape[0] * q.shape[1]):
        raise ValueError(f"bias is [{q.shape[1]}] or [{q.shape[0] * q.shape[1]}], got {list(bias.shape)}")
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (k.shape[0], k.shape[2])):
        raise ValueError(f"key_mask is bool [{k.shape[0]}, {k.shape[2]}], got {key_mask.dtype} {list(key_mask.shape)}")
    if any(each is not None and each.device != q.device for each in (k, v, bias, seed, key_mask)):
        raise ValueError(f"q is on {q.device}, k, v, bias, seed or key_mask are not")
    _check_gates(seed, gates, temperature)


def _check_gates(seed: Tensor | None, gates: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is over 0, got {temperature}")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"seed is one int64, got {seed.dtype} {list(seed.shape)}")
    if gates == "sampled" and seed is None:
        raise ValueError('gates="sampled" needs a seed')
    if gates == "hard" and seed is not None:
        raise ValueError('gates="hard" takes no seed: noise is for "sampled" and "soft"')


def _no_gpu_kernel(q: Tensor) -> str | None:
    if q.device.type == "cpu" and not interpreted():
        return "needs a GPU (or TRITON_INTERPRET=1)"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes fp32, bf16 and fp16, not {q.dtype}"
    return None if q.shape[3] <= WIDEST_TRITON else f"takes head dims up to {WIDEST_TRITON}, not {q.shape[3]}"


def _reference_forward(q, k, v, bias, seed, key_mask, scale, causal, gates, temperature, count):
    out, lse, expected, kept = reference.gated_attention(
        q, k, v, bias, scale=scale, causal=causal, gates=gates, temperature=temperature, seed=seed, key_mask=key_mask
    )
    return (out, lse, expected, kept) if count else (out, lse, lse.new_empty(0), kept.new_empty(0))


def _reference_backward(
    grad_out, grad_lse, grad_expected, q, k, v, bias, seed, key_mask, out, lse, scale, causal, gates, temperature
):
    made = reference.gated_attention_backward(
        grad_out, grad_lse, grad_expected, q, k, v, bias, out, lse,
        scale=scale, causal=causal, gates=gates, temperature=temperature, seed=seed, key_mask=key_mask,
    )  # fmt: skip
    return tuple(each.to(like.dtype) for each, like in zip(made, (q, k, v, bias), strict=True))


def _triton_forward(*args: Any):
    from surgery.kernels.triton.gated_attention_forward import gated_attention_forward

    return gated_attention_forward(*args)


def _triton_backward(*args: Any):
    from surgery.kernels.triton.gated_attention_backward import gated_attention_backward

    return gated_attention_backward(*args)


FORWARDS = {
    "native": cpu.forward,
    "torch": cpu.forward_torch,
    "reference": _reference_forward,
    "triton": _triton_forward,
}
BACKWARDS = {
    "native": cpu.backward,
    "torch": cpu.backward_torch,
    "reference": _reference_backward,
    "triton": _triton_backward,
}
REFUSALS = {"native": cpu.refuse, "triton": _no_gpu_kernel}


def _backends(made: dict[str, Any], on_cpu: bool, query: int) -> tuple[Backend, ...]:
    """In order of preference; `query` is where the arguments have q, which alone a refusal looks at."""

    def refusal(name: str):
        refuse = REFUSALS.get(name, never)
        return lambda *args: refuse(args[query])

    order = ("native", "torch", "reference", "triton") if on_cpu else ("triton", "torch", "reference")
    return tuple(Backend(name, made[name], refusal(name)) for name in order)


def _forward(on_cpu: bool):
    backends = _backends(FORWARDS, on_cpu, query=0)

    def checked(*args: Any):
        check(*args)
        q, k, v, *rest = args
        if not differ(k, v):
            return run("gated_attention", backends, *args)
        out, *others = run("gated_attention", backends, *one_width(q, k, v), *rest)
        return *as_wide((out,), (v,)), *others

    return checked


def _backward(on_cpu: bool):
    backends = _backends(BACKWARDS, on_cpu, query=3)

    def widened(grad_out, grad_lse, grad_expected, q, k, v, bias, seed, key_mask, out, *rest: Any):
        given = (grad_lse, grad_expected)
        if not differ(k, v):
            args = (grad_out, *given, q, k, v, bias, seed, key_mask, out, *rest)
            return run("gated_attention_backward", backends, *args)
        grad_out, wide_q, wide_k, wide_v, out = one_width(grad_out, q, k, v, out)
        args = (grad_out, *given, wide_q, wide_k, wide_v, bias, seed, key_mask, out, *rest)
        *grads, grad_bias = run("gated_attention_backward", backends, *args)
        return *as_wide(grads, (q, k, v)), grad_bias

    return widened


def _fake(q, k, v, bias, seed, key_mask, scale, causal, gates, temperature, count):
    sums = torch.promote_types(q.dtype, torch.float32)
    lines = q.shape[:2] if count else (0,)
    lse = q.new_empty(q.shape[:3], dtype=sums)
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, lse, q.new_empty(lines, dtype=sums), q.new_empty(lines, dtype=torch.int64)


def _fake_backward(grad_out, grad_lse, grad_expected, q, k, v, bias, *rest: Any):
    return tuple(each.new_empty(each.shape) for each in (q, k, v, bias))


def _flops(q, k, v, bias, seed, key_mask, scale, causal, *rest: Any) -> int:
    """Multiplications and additions of the two products, all keys, half of them where causal."""
    return 2 * (q.numel() // q.shape[3]) * (q.shape[3] + v.shape[3]) * k.shape[2] // (2 if causal else 1)


def _flops_backward(
    grad_out, grad_lse, grad_expected, q, k, v, bias, seed, key_mask, out, lse, scale, causal, *rest: Any
) -> int:
    """Five products."""
    widths = 3 * q.shape[3] + 2 * v.shape[3]
    return 2 * (q.numel() // q.shape[3]) * widths * k.shape[2] // (2 if causal else 1)


def _setup(ctx, inputs, output) -> None:
    q, k, v, bias, seed, key_mask, *ctx.settings, ctx.count = inputs
    out, lse, _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, bias, seed, key_mask, out, lse)


def _gradients(ctx, grad_out, grad_lse, grad_expected, grad_kept):
    *inputs, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    if grad_expected is None or not ctx.count:
        grad_expected = lse.new_zeros(lse.shape[:2])
    given = (grad_out, grad_lse, grad_expected, *inputs, out, lse, *ctx.settings)
    grads = torch.ops.surgery.gated_attention_backward(*given)
    return *grads, *[None] * 7


operator(
    "gated_attention_backward(Tensor grad_out, Tensor grad_lse, Tensor grad_expected, Tensor q, Tensor k, Tensor v, "
    "Tensor bias, Tensor? seed, Tensor? key_mask, Tensor out, Tensor lse, float scale, bool causal, str gates, "
    "float temperature) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward(on_cpu=True),
    cuda=_backward(on_cpu=False),
    fake=_fake_backward,
    flops=_flops_backward,
)
operator(
    "gated_attention(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? seed, Tensor? key_mask, float scale, "
    "bool causal, str gates, float temperature, bool count) "
    "-> (Tensor out, Tensor lse, Tensor expected, Tensor kept)",
    cpu=_forward(on_cpu=True),
    cuda=_forward(on_cpu=False),
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
