"""The log-sum-exp of all scores of a query, and its gradient, in dense tiles: never S × S memory.

    lse_i = log Σ_j exp(scale · q_i · k_j)              over keys j <= i + Sk - Sq if causal
    dq_i = scale · w_i Σ_j p_ij k_j        dk_j = scale Σ_i w_i p_ij q_i        for the loss Σ_i w_i lse_i

with p_ij = exp(s_ij - lse_i). q [B, Hq, Sq, D], k [B, Hkv, Sk, D]; lse and w [B, Hq, Sq] fp32; dq, dk fp32. The
reference is `kernels/cpu/attention_denominator.py`; the tiling is flash attention's (arXiv 2205.14135), without values.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import (
    NATURAL,
    load_tile,
    padded_dim,
    softmax_again,
    softmax_end,
    softmax_step,
    store_tile,
)
from surgery.kernels.tuning import architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

UNSPECIALIZED = ["queries", "keys", "heads", "group"]
"""Counts that change from call to call: a kernel must not be compiled anew for them."""


@triton.jit
def scores_of(a, b, queries, keys, q_rows, k_rows, scale, CAUSAL: tl.constexpr):
    """a · bᵀ scaled, -inf where a key is not counted: beyond the last, or after the query. One of a, b holds queries."""
    scores = tl.dot(a, tl.trans(b), input_precision="ieee") * scale
    seen = (k_rows < keys) & (q_rows < queries)
    if CAUSAL:
        seen = seen & (k_rows <= q_rows + keys - queries)
    return tl.where(seen, scores, float("-inf"))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward(
    q,
    k,
    lse,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    queries,
    keys,
    heads,
    group,
    dim,
    scale,
    CAUSAL: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """lse of BLOCK_M queries of one head."""
    tiles = tl.cdiv(queries, BLOCK_M)
    number = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, DIM)
    k += number // heads * k_batch + number % heads // group * k_head
    q += number // heads * q_batch + number % heads * q_head
    own = load_tile(q, rows, columns, q_row, queries, dim, True, True)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (tl.program_id(0) % tiles + 1) * BLOCK_M + keys - queries)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        tile = load_tile(k, key, columns, k_row, keys, dim, True, True)
        scores = scores_of(own, tile, queries, keys, rows[:, None], key[None, :], scale, CAUSAL)
        _, _, peak, total = softmax_step(scores, NATURAL, peak, total)
    _, log_sum = softmax_end(peak, total)
    tl.store(lse + number * queries + rows, log_sum, mask=rows < queries)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_queries(
    q,
    k,
    lse,
    weight,
    dq,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    queries,
    keys,
    heads,
    group,
    dim,
    scale,
    CAUSAL: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dq of BLOCK_M queries of one head; weight comes times the scale."""
    tiles = tl.cdiv(queries, BLOCK_M)
    number = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, DIM)
    k += number // heads * k_batch + number % heads // group * k_head
    q += number // heads * q_batch + number % heads * q_head
    own = load_tile(q, rows, columns, q_row, queries, dim, True, True)
    log_sum = tl.load(lse + number * queries + rows, mask=rows < queries, other=0.0)
    log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (tl.program_id(0) % tiles + 1) * BLOCK_M + keys - queries)
    total = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        tile = load_tile(k, key, columns, k_row, keys, dim, True, True)
        scores = scores_of(own, tile, queries, keys, rows[:, None], key[None, :], scale, CAUSAL)
        share = softmax_again(scores, 1.0, log_sum[:, None], q.dtype.element_ty == tl.float32)
        total = tl.dot(share.to(tile.dtype), tile, total, input_precision="ieee")
    factor = tl.load(weight + number * queries + rows, mask=rows < queries, other=0.0)
    store_tile(dq + number * queries * dim, total * factor[:, None], rows, columns, dim, queries, dim, True)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_keys(
    q,
    k,
    lse,
    weight,
    dk,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    queries,
    keys,
    heads,
    group,
    dim,
    scale,
    CAUSAL: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dk of BLOCK_N keys of one key head, over all query heads that read it; weight comes times the scale."""
    tiles = tl.cdiv(keys, BLOCK_N)
    number = (tl.program_id(0) // tiles).to(tl.int64)
    key = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, DIM)
    kv_heads = heads // group
    k += number // kv_heads * k_batch + number % kv_heads * k_head
    tile = load_tile(k, key, columns, k_row, keys, dim, True, True)
    first = 0
    if CAUSAL:
        first = tl.maximum(0, (tl.program_id(0) % tiles) * BLOCK_N - keys + queries) // BLOCK_M * BLOCK_M
    total = tl.zeros([BLOCK_N, DIM], tl.float32)
    for member in range(0, group):
        head = number * group + member
        q_own = q + head // heads * q_batch + head % heads * q_head
        for start in range(first, queries, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            own = load_tile(q_own, rows, columns, q_row, queries, dim, True, True)
            log_sum = tl.load(lse + head * queries + rows, mask=rows < queries, other=0.0)
            log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)
            factor = tl.load(weight + head * queries + rows, mask=rows < queries, other=0.0)
            scores = scores_of(tile, own, queries, keys, rows[None, :], key[:, None], scale, CAUSAL)
            share = softmax_again(scores, 1.0, log_sum[None, :], q.dtype.element_ty == tl.float32)
            share *= factor[None, :]
            total = tl.dot(share.to(own.dtype), own, total, input_precision="ieee")
    store_tile(dk + number * keys * dim, total, key, columns, dim, keys, dim, True)


def launch_denominator(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """lse [B, Hq, Sq]; q and k as `whole_rows` gives them."""
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    config = pick("edge_attention", architecture(q.device), q.dtype, q.shape[3], "dense")
    tiles = triton.cdiv(q.shape[2], config.blocks["BLOCK_M"]) * q.shape[0] * q.shape[1]
    if tiles:
        forward[(tiles,)](q, k, lse, **_shapes(q, k, scale, causal), **config.launch)
    return lse


def launch_gradient(
    q: Tensor, k: Tensor, lse: Tensor, weight: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """dq [B, Hq, Sq, D] and dk [B, Hkv, Sk, D], fp32, of Σ weight_i · lse_i."""
    dq, dk = (torch.empty(each.shape, dtype=torch.float32, device=q.device) for each in (q, k))
    config = pick("edge_attention", architecture(q.device), q.dtype, q.shape[3], "dense_backward")
    given = {"lse": lse, "weight": weight * scale, **_shapes(q, k, scale, causal), **config.launch}
    row_tiles = triton.cdiv(q.shape[2], config.blocks["BLOCK_M"]) * q.shape[0] * q.shape[1]
    key_tiles = triton.cdiv(k.shape[2], config.blocks["BLOCK_N"]) * k.shape[0] * k.shape[1]
    if row_tiles:
        backward_queries[(row_tiles,)](q, k, dq=dq, **given)
    if key_tiles:
        backward_keys[(key_tiles,)](q, k, dk=dk, **given)
    return dq, dk


def _shapes(q: Tensor, k: Tensor, scale: float, causal: bool) -> dict:
    """Strides, sizes and constants that the three kernels share."""
    strides = zip(
        ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row"), (*q.stride()[:3], *k.stride()[:3]), strict=True
    )
    dim = q.shape[3]
    return {
        **dict(strides),
        "queries": q.shape[2],
        "keys": k.shape[2],
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
        "dim": dim,
        "scale": scale,
        "CAUSAL": causal,
        "DIM": padded_dim(dim),
    }


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, causal and not."""
    names = {"dense": (forward,), "dense_backward": (backward_queries, backward_keys)}
    for config in shipped("edge_attention", arch):
        for kernel in names.get(config.tile, ()):
            for causal in (False, True):
                yield _compilation(kernel, config, causal)


def _compilation(kernel, config, causal: bool) -> Compilation:
    pointers = {"q": f"*{config.dtype}", "k": f"*{config.dtype}"}
    pointers |= {name: "*fp32" for name in ("lse", "weight", "dq", "dk") if name in kernel.arg_names}
    strides = ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row")
    constants = {"CAUSAL": causal, "DIM": config.dim, **config.blocks}
    signature = {name: "i32" for name in kernel.arg_names} | pointers | {"scale": "fp32"}
    tall = config.dtype != "fp32" and min(config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]) >= 64
    return Compilation(
        kernel=f"attention_denominator:{kernel.__name__}",
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=(*pointers, *strides, "dim"),
        options=config.options,
        expects={"sm90": ("wgmma",)} if tall else {},
    )
