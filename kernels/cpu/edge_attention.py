"""Attention over listed edges on a CPU: native kernels, fp32 and bf16.

`normalize="all"` takes its denominator, and the denominator's gradient, from `attention_denominator`.
"""

import ctypes
import functools

import torch
from surgery.kernels.cpu import attention_denominator
from surgery.kernels.native import available, library
from torch import Tensor

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
WIDEST = 1024
"""The widest head dim that the native kernel has room for."""


def refuse(q: Tensor, *rest) -> str | None:
    """Why the native kernels cannot take this, or None."""
    if q.dtype not in SUFFIX:
        return f"takes fp32 and bf16, not {q.dtype}"
    if q.shape[-1] > WIDEST:
        return f"takes head dims up to {WIDEST}, not {q.shape[-1]}"
    return available("edge_attention")


def forward(
    q: Tensor, k: Tensor, v: Tensor, edges: list[Tensor], scale: float, normalize: str, causal: bool
) -> tuple[Tensor, Tensor]:
    """out and lse; see the reference."""
    ptr, idx = edges[0].contiguous(), edges[1].contiguous()
    q, k, v = rows(q), rows(k), rows(v)
    out, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[:3], dtype=torch.float32)
    peak = rest = None
    if normalize == "all":
        peak, rest = attention_denominator.forward(q, k, scale, causal, attention_denominator.Listed(ptr, idx))
    reach = attention_denominator.reach(q, k, normalize, causal)
    call("forward", q, (q, k, v, ptr, idx, peak, rest, scale, out, lse), edges, k, (q, k, v, out), reach)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    edges: list[Tensor],
    scale: float,
    normalize: str,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv. One pass over the rows keeps two numbers per edge and head; one over the keys sums them."""
    ptr, idx, ptr_t, idx_t, place = (each.contiguous() for each in edges)
    q, k, v, grad_out, lse = rows(q), rows(k), rows(v), rows(grad_out), lse.contiguous()
    delta = (out.float() * grad_out.float()).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    dq_base = dk_base = None
    if normalize == "all":
        listed = attention_denominator.Listed(ptr, idx)
        dq_base, dk_base = attention_denominator.backward(q, k, -delta, scale, causal, listed)
        lse = attention_denominator.weightless(lse)
    dq, dk, dv = (torch.empty(each.shape, dtype=each.dtype) for each in (q, k, v))
    shape = (q.shape[0] * q.shape[1] // patterns(ptr, q), idx.numel())
    probability, slope = torch.empty(shape, dtype=torch.float32), torch.empty(shape, dtype=torch.float32)
    by_row = (q, k, v, grad_out, ptr, idx, lse, delta, dq_base, scale, probability, slope, dq)
    by_key = (q, grad_out, ptr_t, idx_t, place, probability, slope, dk_base, scale, dk, dv)
    reach = attention_denominator.reach(q, k, normalize, causal)
    call("backward_queries", q, by_row, edges, k, (q, k, v, grad_out, dq), reach)
    call("backward_keys", q, by_key, edges, k, (q, grad_out, dk, dv), reach)
    return dq, dk, dv


def rows(x: Tensor) -> Tensor:
    """With the elements of a row side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def patterns(ptr: Tensor, q: Tensor) -> int:
    """How many masks there are: 1, Hq or B * Hq."""
    return (ptr.numel() - 1) // q.shape[2] if q.shape[2] else 1


def call(
    name: str, q: Tensor, arguments: tuple, edges: list[Tensor], k: Tensor, strided: tuple[Tensor, ...], reach: int
) -> None:
    """Call a native function: tensors as pointers (None as null), then sizes, the strides of `strided`, threads."""
    count = max(patterns(edges[0], q), 1)
    sizes = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], count, edges[1].numel(), reach)
    strides = [stride for each in strided for stride in each.stride()[:3]]
    given = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    arrays = ((ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int64 * len(strides))(*strides))
    if q.numel() or k.numel():
        function(name, q.dtype)(*given, *arrays, torch.get_num_threads())


@functools.cache
def function(name: str, dtype: torch.dtype) -> ctypes._CFuncPtr:
    """The native function with its argument types."""
    pointer, longs = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)
    before, after = {"forward": (7, 2), "backward_queries": (9, 3), "backward_keys": (8, 2)}[name]
    found = getattr(library("edge_attention"), f"{name}_{SUFFIX[dtype]}")
    found.argtypes = [pointer] * before + [ctypes.c_float] + [pointer] * after + [longs, longs, ctypes.c_int]
    found.restype = None
    return found
