"""Block-sparse attention, gradient of the queries: dq = scale · [p ∘ (dout vᵀ - delta)] k, delta = Σ out ∘ dout.

p is made again from q, k and the forward's log-sum-exp. A program owns a tile of query rows, so that nothing is added
across programs; it writes delta [B, Hq, Sq] too, which the kernel for dk and dv reads after it.

Reference: `surgery.kernels.reference.block_attention.backward`. Source: FlashAttention-2 (Dao, 2023), algorithm 2.
"""

from collections.abc import Iterator, Sequence

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._blocks import Grid, compilation, config, variants, words_of
from surgery.kernels.triton._common import (
    checks_columns,
    load_tile,
    padded_dim,
    softmax_again,
    store_tile,
    trimmed,
    unpack_bits,
    whole_rows,
)
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def descend(
    gradient, tile, grad_tile, ends, delta, k, v, k_row, v_row, first_key, words, first_bit, keys, dim, scale,
    MASKED: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """Take in one tile of keys; `ends` is the log-sum-exp, finite."""
    local = tl.arange(0, TILE_K)
    columns = tl.arange(0, DIM)
    key_tile = load_tile(k, first_key + local, columns, k_row, keys, dim, MASKED, CHECKED)
    scores = tl.dot(tile, tl.trans(key_tile), input_precision="ieee")
    if MASKED:
        kept = unpack_bits(words, first_bit + local, (TILE_K + 31) // 32)
        scores = tl.where(kept, scores, float("-inf"))
    weights = softmax_again(scores, scale, ends[:, None], tile.dtype == tl.float32)
    value_tile = load_tile(v, first_key + local, columns, v_row, keys, dim, MASKED, CHECKED)
    pulls = tl.dot(grad_tile, tl.trans(value_tile), input_precision="ieee")
    slopes = weights * (pulls - delta[:, None])
    return tl.dot(slopes.to(key_tile.dtype), key_tile, gradient, input_precision="ieee")


@triton.jit(do_not_specialize=["heads", "group", "batch_patterns", "head_patterns", "split_shift", "bit_words"])
def dq(
    q, k, v, out, grad_out, lse, delta, grad_q, full_ptr, full_idx, part_ptr, part_idx, part_bits,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    out_batch, out_head, out_row, grad_batch, grad_head, grad_row,
    heads, group, batch_patterns, head_patterns, queries, keys, dim, tiles, block_rows, block_q, block_k,
    split_shift, bit_words, scale,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """A program: one tile of query rows, the last rows first as in the forward."""
    tile_index = tiles - 1 - tl.program_id(0) % tiles
    line = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = line // heads, line % heads
    first_row = tile_index * TILE_Q
    block_row = (batch * batch_patterns + head * head_patterns) * block_rows + first_row // block_q

    rows, columns = first_row + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    tile = load_tile(q + batch * q_batch + head * q_head, rows, columns, q_row, queries, dim, True, CHECKED)
    out += batch * out_batch + head * out_head
    grad_out += batch * grad_batch + head * grad_head
    out_tile = load_tile(out, rows, columns, out_row, queries, dim, True, CHECKED)
    grad_tile = load_tile(grad_out, rows, columns, grad_row, queries, dim, True, CHECKED)
    own = line * queries
    of_lse = tl.load(delta + own + rows, mask=rows < queries, other=0.0)
    products = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1) - of_lse
    tl.store(delta + own + rows, products, mask=rows < queries)
    ends = tl.load(lse + own + rows, mask=rows < queries, other=0.0)
    ends = tl.where(ends == float("-inf"), 0.0, ends)  # a row without a key: all its weights are masked
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head

    gradient = tl.zeros([TILE_Q, DIM], tl.float32)
    splits = (1 << split_shift) - 1
    start, stop = tl.load(full_ptr + block_row), tl.load(full_ptr + block_row + 1)
    for step in range(start << split_shift, stop << split_shift):
        first_key = tl.load(full_idx + (step >> split_shift)) * block_k + (step & splits) * TILE_K
        gradient = descend(
            gradient, tile, grad_tile, ends, products, k, v, k_row, v_row, first_key, part_bits, 0, keys, dim,
            scale, False, TILE_K, DIM, CHECKED,
        )  # fmt: skip

    start, stop = tl.load(part_ptr + block_row), tl.load(part_ptr + block_row + 1)
    row_words = part_bits + (first_row % block_q + tl.arange(0, TILE_Q)) * bit_words
    for step in range(start << split_shift, stop << split_shift):
        position = step >> split_shift
        first_column = (step & splits) * TILE_K
        first_key = tl.load(part_idx + position) * block_k + first_column
        words = row_words + position.to(tl.int64) * block_q * bit_words + first_column // 32
        gradient = descend(
            gradient, tile, grad_tile, ends, products, k, v, k_row, v_row, first_key, words, first_column % 32, keys,
            dim, scale, True, TILE_K, DIM, CHECKED,
        )  # fmt: skip

    store_tile(grad_q + own * dim, gradient * scale, rows, columns, dim, queries, dim, CHECKED)


def block_attention_dq(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: Sequence[Tensor], block: tuple[int, int], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dq as q, contiguous; delta fp32 [B, Hq, Sq]: Σ out · grad_out less the gradient of lse)."""
    own, (grad_out, q, k, v, out) = q.shape[-1], (whole_rows(each) for each in (grad_out, q, k, v, out))
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    given = q.new_zeros((), dtype=torch.float32) if grad_lse is None else grad_lse
    delta = given.expand(q.shape[:3]).clone(memory_format=torch.contiguous_format)
    if grad_q.numel() == 0:
        return trimmed(grad_q, own), delta
    row, grid, dim = config("dq", q, block), Grid.of(q, k, layout, block), q.shape[-1]
    tiles = grid.block_rows * (block[0] // row.blocks["TILE_Q"])
    strides = [stride for each in (q, k, v, out, grad_out) for stride in each.stride()[:3]]
    dq[(tiles * grid.batch * grid.heads,)](
        q, k, v, out, grad_out, lse.contiguous(), delta, grad_q, *layout[:5], *strides,
        grid.heads, grid.group, *grid.pattern_strides, q.shape[2], k.shape[2], dim, tiles, grid.block_rows, *block,
        (block[1] // row.blocks["TILE_K"]).bit_length() - 1, words_of(block), float(scale),
        DIM=padded_dim(dim), CHECKED=checks_columns(row, dim), **row.launch,
    )  # fmt: skip
    return trimmed(grad_q, own), delta


POINTERS = (
    "q:* k:* v:* out:* grad_out:* lse:*fp32 delta:*fp32 grad_q:* "
    "full_ptr:*i32 full_idx:*i32 part_ptr:*i32 part_idx:*i32 part_bits:*i32"
)
NUMBERS = (
    "q_batch:i32 q_head:i32 q_row:i32 k_batch:i32 k_head:i32 k_row:i32 v_batch:i32 v_head:i32 v_row:i32 "
    "out_batch:i32 out_head:i32 out_row:i32 grad_batch:i32 grad_head:i32 grad_row:i32 "
    "heads:i32 group:i32 batch_patterns:i32 head_patterns:i32 queries:i32 keys:i32 dim:i32 tiles:i32 block_rows:i32 "
    "block_q:i32 block_k:i32 split_shift:i32 bit_words:i32 scale:fp32"
)


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row."""
    for row, checks in variants("dq", arch):
        yield compilation("dq", POINTERS, NUMBERS, row, checks, wide="TILE_Q")
