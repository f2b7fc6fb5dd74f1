"""Attention over listed edges, backward: dq by query, dk and dv by key over the transposed lists, no atomics.

    p_ij = exp(s_ij - lse_i)        ds_ij = p_ij (dout_i · v_j - delta_i)
    dq_i = scale Σ_j ds_ij k_j      dk_j = scale Σ_i ds_ij q_i      dv_j = Σ_i p_ij dout_i

delta_i = out_i · dout_i - dlse_i. With denominators over all keys delta is 0 here: its part reaches every key, comes from
`attention_denominator` and is what dq and dk start from (`base`). The reference is the gradient of
`kernels/reference/edge_attention.py`.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.cpu import attention_denominator
from surgery.kernels.triton._common import padded_dim, softmax_again, trimmed, whole_rows
from surgery.kernels.triton.attention_denominator import launch_gradient
from surgery.kernels.triton.edge_attention_forward import (
    ROWS,
    UNSPECIALIZED,
    compilation,
    gathered,
    heads_together,
    products,
    sizes,
    strides,
    tile_class,
    weighted,
)
from surgery.kernels.tuning import architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl


@triton.jit(do_not_specialize=UNSPECIALIZED)
def queries_kernel(
    q,
    k,
    v,
    grad,
    ptr,
    idx,
    lse,
    delta,
    base,
    dq,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    grad_batch,
    grad_head,
    grad_row,
    queries,
    heads,
    group,
    together,
    patterns,
    dim,
    scale,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    EDGES: tl.constexpr,
):
    """dq of one query of `together` heads."""
    query = (tl.program_id(0) % queries).to(tl.int64)
    first = (tl.program_id(0) // queries).to(tl.int64) * together
    member, columns = tl.arange(0, ROWS), tl.arange(0, DIM)
    inside = (member < together)[:, None] & (columns < dim)[None, :]
    batch, head = first // heads, first % heads
    q += batch * q_batch + query * q_row
    grad += batch * grad_batch + query * grad_row
    own = tl.load(q + (head + member)[:, None] * q_head + columns[None, :], mask=inside, other=0.0)
    dout = tl.load(grad + (head + member)[:, None] * grad_head + columns[None, :], mask=inside, other=0.0)
    k += batch * k_batch + head // group * k_head
    v += batch * v_batch + head // group * v_head
    place = (first + member) * queries + query
    log_sum = tl.load(lse + place, mask=member < together, other=0.0)
    shift = tl.load(delta + place, mask=member < together, other=0.0)
    row = first % patterns * queries + query
    begin, end = tl.load(ptr + row), tl.load(ptr + row + 1)
    total = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(begin, end, EDGES):
        edge = start + tl.arange(0, EDGES)
        real = edge < end
        key = tl.load(idx + edge, mask=real, other=0)
        keys, values = gathered(k, key, real, columns, k_row, dim), gathered(v, key, real, columns, v_row, dim)
        scores = tl.where(real[None, :], products(own, keys, ROWS) * scale, float("-inf"))
        slope = softmax_again(scores, 1.0, log_sum[:, None], True) * (products(dout, values, ROWS) - shift[:, None])
        total = weighted(total, slope, keys, ROWS)
    total *= scale
    where = place[:, None] * dim + columns[None, :]
    if not KEPT:
        total += tl.load(base + where, mask=inside, other=0.0)
    tl.store(dq + where, total.to(dq.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=[name for name in UNSPECIALIZED if name != "together"])
def keys_kernel(
    q,
    k,
    v,
    grad,
    ptr,
    idx,
    lse,
    delta,
    base,
    dk,
    dv,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    grad_batch,
    grad_head,
    grad_row,
    queries,
    keys,
    heads,
    group,
    patterns,
    dim,
    scale,
    KEPT: tl.constexpr,
    DIM: tl.constexpr,
    EDGES: tl.constexpr,
):
    """dk and dv of one key of one key head, over the query heads that read it; ptr and idx are the transposed lists."""
    key = (tl.program_id(0) % keys).to(tl.int64)
    number = (tl.program_id(0) // keys).to(tl.int64)
    columns = tl.arange(0, DIM)
    inside = columns < dim
    kv_heads = heads // group
    batch, own = number // kv_heads, number % kv_heads
    key_row = tl.load(k + batch * k_batch + own * k_head + key * k_row + columns, mask=inside, other=0.0)
    value_row = tl.load(v + batch * v_batch + own * v_head + key * v_row + columns, mask=inside, other=0.0)
    key_row, value_row = key_row.to(tl.float32)[None, :], value_row.to(tl.float32)[None, :]
    total_k, total_v = tl.zeros([DIM], tl.float32), tl.zeros([DIM], tl.float32)
    for member in range(0, group):
        head = number * group + member
        q_own = q + batch * q_batch + head % heads * q_head
        grad_own = grad + batch * grad_batch + head % heads * grad_head
        row = head % patterns * keys + key
        begin, end = tl.load(ptr + row), tl.load(ptr + row + 1)
        for start in range(begin, end, EDGES):
            edge = start + tl.arange(0, EDGES)
            real = edge < end
            query = tl.load(idx + edge, mask=real, other=0)
            rows = gathered(q_own, query, real, columns, q_row, dim).to(tl.float32)
            douts = gathered(grad_own, query, real, columns, grad_row, dim).to(tl.float32)
            log_sum = tl.load(lse + head * queries + query, mask=real, other=0.0)
            shift = tl.load(delta + head * queries + query, mask=real, other=0.0)
            scores = tl.where(real, tl.sum(rows * key_row, 1) * scale, float("-inf"))
            share = softmax_again(scores, 1.0, log_sum, True)
            slope = share * (tl.sum(douts * value_row, 1) - shift)
            total_k += tl.sum(slope[:, None] * rows, 0)
            total_v += tl.sum(share[:, None] * douts, 0)
    total_k *= scale
    where = (number * keys + key) * dim + columns
    if not KEPT:
        total_k += tl.load(base + where, mask=inside, other=0.0)
    tl.store(dk + where, total_k.to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + where, total_v.to(dv.dtype.element_ty), mask=inside)


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
    """dq, dk, dv."""
    ptr, idx, ptr_t, idx_t = (each.contiguous() for each in edges[:4])
    lse, kept = lse.contiguous(), normalize == "kept"
    delta = (out.float() * grad_out.float()).sum(-1)
    own, (q, k, v, grad_out) = q.shape[3], (whole_rows(each) for each in (q, k, v, grad_out))
    if grad_lse is not None:
        delta = delta - grad_lse
    dq_base = dk_base = delta
    if not kept:
        dq_base, dk_base = launch_gradient(q, k, lse, -delta, scale, causal)
        delta, lse = torch.zeros_like(delta), attention_denominator.weightless(lse)
    dq, dk, dv = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
    shared = {"lse": lse, "delta": delta, "KEPT": kept, **strides(q=q, k=k, v=v, grad=grad_out)}
    arch, dim, together = architecture(q.device), q.shape[3], heads_together(q, k, ptr)
    if q.numel():
        config = pick("edge_attention", arch, q.dtype, dim, f"{tile_class(together)}_backward")
        given = {**shared, **sizes(q, k, ptr, together, scale), **config.launch}
        programs = q.shape[0] * q.shape[1] // together * q.shape[2]
        queries_kernel[(programs,)](q, k, v, grad_out, ptr, idx, base=dq_base, dq=dq, **given)
    if k.numel():
        config = pick("edge_attention", arch, q.dtype, dim, "keys_backward")
        given = {**shared, **_key_sizes(q, k, ptr_t, scale), **config.launch}
        programs = k.shape[0] * k.shape[1] * k.shape[2]
        keys_kernel[(programs,)](q, k, v, grad_out, ptr_t, idx_t, base=dk_base, dk=dk, dv=dv, **given)
    return trimmed(dq, own), trimmed(dk, own), trimmed(dv, own)


def _key_sizes(q: Tensor, k: Tensor, ptr_t: Tensor, scale: float) -> dict:
    return {
        "queries": q.shape[2],
        "keys": k.shape[2],
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
        "patterns": (ptr_t.numel() - 1) // k.shape[2],
        "dim": q.shape[3],
        "scale": scale,
        "DIM": padded_dim(q.shape[3]),
    }


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, both normalisations."""
    for config in shipped("edge_attention", arch):
        for kept in (True, False):
            if config.tile == "keys_backward":
                yield _by_key(config, kept)
            if config.tile in [f"{kind}_backward" for kind in ROWS]:
                yield compilation("edge_attention_backward", queries_kernel, config, {"KEPT": kept})


def _by_key(config, kept: bool) -> Compilation:
    pointers = {name: f"*{config.dtype}" for name in ("q", "k", "v", "grad", "dk", "dv")}
    pointers |= {name: "*fp32" for name in ("lse", "delta", "base")} | {"ptr": "*i64", "idx": "*i32"}
    constants = {"KEPT": kept, "DIM": config.dim, **config.blocks}
    numbers = {name: "i32" for name in keys_kernel.arg_names} | {"scale": "fp32"}
    steps = [name for name in keys_kernel.arg_names if name.endswith(("_batch", "_head", "_row"))]
    return Compilation(
        kernel="edge_attention_backward:keys_kernel",
        signature=numbers | pointers | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=(*pointers, *steps, "dim"),
        options=config.options,
    )
