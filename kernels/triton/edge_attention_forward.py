"""Attention over listed edges, forward: a program gathers the keys and values of one query.

    out_i = Σ_{j kept} exp(s_ij - lse_i) v_j        s_ij = scale · q_i · k_j

q, out [B, Hq, Sq, D], k, v [B, Hkv, Sk, D], lse [B, Hq, Sq] fp32, lists in `layouts/edges.py`. Query heads that share a
key head and the list are done together, as the rows of a `tl.dot`; else each head alone, as products of vectors: two
operations per loaded element, so memory decides, and what counts is that many rows are on their way at once (many small
programs, no pipelining). The reference is `kernels/reference/edge_attention.py`.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import (
    NATURAL,
    padded_dim,
    softmax_again,
    softmax_end,
    softmax_step,
    trimmed,
    whole_rows,
)
from surgery.kernels.triton.attention_denominator import launch_denominator
from surgery.kernels.tuning import architecture, pick, shipped
from surgery.kernels.tuning.pick import Config
from torch import Tensor

import triton
import triton.language as tl

ROWS = {"edges": 1, "group": 16}
"""Rows of the tile of a class, the most heads that a program does together: `tl.dot` takes 16 at least."""

UNSPECIALIZED = ["queries", "keys", "heads", "group", "together", "patterns"]
"""Counts that change from call to call: a kernel must not be compiled anew for them."""


@triton.jit
def products(a, b, ROWS: tl.constexpr):
    """a [ROWS, D] · b [E, D]ᵀ in fp32; a single row without `tl.dot`."""
    if ROWS == 1:
        return tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)[None, :]
    else:
        return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def weighted(total, weights, b, ROWS: tl.constexpr):
    """total + weights [ROWS, E] · b [E, D] in fp32; a single row without `tl.dot`."""
    if ROWS == 1:
        return total + tl.sum(tl.trans(weights) * b.to(tl.float32), 0)[None, :]
    else:
        return tl.dot(weights.to(b.dtype), b, total, input_precision="ieee")


@triton.jit
def gathered(base, index, real, columns, row_stride, dim):
    """base[index] [E, D], 0 where there is no edge. Offsets in int64: a row's may pass 2^31."""
    pointers = base + index.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(pointers, mask=real[:, None] & (columns < dim)[None, :], other=0.0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    q,
    k,
    v,
    ptr,
    idx,
    denominator,
    out,
    lse,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
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
    """One query of `together` heads. KEPT: the sum of the weights is made here; else `denominator` holds its logarithm."""
    query = (tl.program_id(0) % queries).to(tl.int64)
    first = (tl.program_id(0) // queries).to(tl.int64) * together
    member, columns = tl.arange(0, ROWS), tl.arange(0, DIM)
    inside = (member < together)[:, None] & (columns < dim)[None, :]
    batch, head = first // heads, first % heads
    q += batch * q_batch + query * q_row
    own = tl.load(q + (head + member)[:, None] * q_head + columns[None, :], mask=inside, other=0.0)
    k += batch * k_batch + head // group * k_head
    v += batch * v_batch + head // group * v_head
    place = (first + member) * queries + query
    row = first % patterns * queries + query
    begin, end = tl.load(ptr + row), tl.load(ptr + row + 1)
    peak, sums = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, DIM], tl.float32)
    if not KEPT:
        known = tl.load(denominator + place, mask=member < together, other=0.0)
        known = tl.where(known == float("-inf"), float("inf"), known)  # a query that no key counts for weighs nothing
    for start in range(begin, end, EDGES):
        edge = start + tl.arange(0, EDGES)
        real = edge < end
        key = tl.load(idx + edge, mask=real, other=0)
        keys, values = gathered(k, key, real, columns, k_row, dim), gathered(v, key, real, columns, v_row, dim)
        scores = tl.where(real[None, :], products(own, keys, ROWS) * scale, float("-inf"))
        if KEPT:
            weights, shrink, peak, sums = softmax_step(scores, NATURAL, peak, sums)
            total = weighted(total * shrink[:, None], weights, values, ROWS)
        else:
            total = weighted(total, softmax_again(scores, 1.0, known[:, None], True), values, ROWS)
    if KEPT:
        factor, log_sum = softmax_end(peak, sums)
        total = total * factor[:, None]
        tl.store(lse + place, log_sum, mask=member < together)
    tl.store(out + place[:, None] * dim + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


def forward(
    q: Tensor, k: Tensor, v: Tensor, edges: list[Tensor], scale: float, normalize: str, causal: bool
) -> tuple[Tensor, Tensor]:
    """out and lse; see the reference."""
    ptr, idx = (each.contiguous() for each in edges[:2])
    dim, (q, k, v) = q.shape[3], (whole_rows(each) for each in (q, k, v))
    kept = normalize == "kept"
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lse = lse if kept else launch_denominator(q, k, scale, causal)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    together = heads_together(q, k, ptr)
    config = pick("edge_attention", architecture(q.device), q.dtype, q.shape[3], tile_class(together))
    programs = q.shape[0] * q.shape[1] // together * q.shape[2]
    if programs:
        given = {**sizes(q, k, ptr, together, scale), **strides(q=q, k=k, v=v), **config.launch}
        forward_kernel[(programs,)](q, k, v, ptr, idx, lse, out, lse, KEPT=kept, **given)
    return trimmed(out, dim), lse


def heads_together(q: Tensor, k: Tensor, ptr: Tensor) -> int:
    """The query heads of a program: those of a key head, as many as divide it and fit, if every head has one list."""
    group = q.shape[1] // k.shape[1]
    if ptr.numel() - 1 != q.shape[2]:
        return 1
    return max(count for count in range(1, ROWS["group"] + 1) if group % count == 0)


def tile_class(together: int) -> str:
    return "edges" if together == 1 else "group"


def strides(**tensors: Tensor) -> dict[str, int]:
    """`q` → q_batch, q_head, q_row."""
    return {
        f"{name}_{axis}": each.stride(place)
        for name, each in tensors.items()
        for place, axis in enumerate(("batch", "head", "row"))
    }


def sizes(q: Tensor, k: Tensor, ptr: Tensor, together: int, scale: float) -> dict:
    """What the kernels by query take besides tensors and strides."""
    return {
        "queries": q.shape[2],
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
        "patterns": (ptr.numel() - 1) // q.shape[2],
        "dim": q.shape[3],
        "scale": scale,
        "together": together,
        "ROWS": ROWS[tile_class(together)],
        "DIM": padded_dim(q.shape[3]),
    }


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, both normalisations."""
    for config in shipped("edge_attention", arch):
        for kept in (True, False) if config.tile in ROWS else ():
            yield compilation("edge_attention_forward", forward_kernel, config, {"KEPT": kept})


def compilation(file: str, kernel, config: Config, constants: dict) -> Compilation:
    """A kernel by query for a row of the table."""
    typed = {name: f"*{config.dtype}" for name in ("q", "k", "v", "out", "grad", "dq")}
    typed |= {name: "*fp32" for name in ("denominator", "lse", "delta", "base")} | {"ptr": "*i64", "idx": "*i32"}
    pointers = {name: kind for name, kind in typed.items() if name in kernel.arg_names}
    steps = [name for name in kernel.arg_names if name.endswith(("_batch", "_head", "_row"))]
    constants = {**constants, "ROWS": ROWS[config.tile.removesuffix("_backward")], "DIM": config.dim, **config.blocks}
    signature = {name: "i32" for name in kernel.arg_names} | pointers | {"scale": "fp32"}
    return Compilation(
        kernel=f"{file}:{kernel.__name__}",
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=(*pointers, *steps, "dim"),
        options=config.options,
    )
