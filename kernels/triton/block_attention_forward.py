"""Block-sparse attention, forward: out = softmax(scale · q kᵀ over the kept keys) v, online over a row's blocks.

q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D]; fp32, fp16, bf16; sums in fp32. A program owns a tile of query rows of one
head: it walks the row's full blocks without any test of keys, then its partial blocks with their bits.

Reference: `surgery.kernels.reference.block_attention.forward`. Source: FlashAttention-2 (Dao, 2023), with the
full/partial split of FlexAttention (Dong et al., 2024).
"""

from collections.abc import Iterator, Sequence

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._blocks import Grid, compilation, config, variants, words_of
from surgery.kernels.triton._common import (
    LOG2E,
    checks_columns,
    load_tile,
    padded_dim,
    softmax_end,
    softmax_step,
    store_tile,
    trimmed,
    unpack_bits,
    whole_rows,
)
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def attend(
    tile, sums, peak, total, k, v, k_row, v_row, first_key, words, first_bit, keys, dim, scale,
    MASKED: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """Take in one tile of keys."""
    local = tl.arange(0, TILE_K)
    columns = tl.arange(0, DIM)
    key_tile = load_tile(k, first_key + local, columns, k_row, keys, dim, MASKED, CHECKED)
    scores = tl.dot(tile, tl.trans(key_tile), input_precision="ieee")
    if MASKED:
        kept = unpack_bits(words, first_bit + local, (TILE_K + 31) // 32)
        scores = tl.where(kept, scores, float("-inf"))
    weights, shrink, peak, total = softmax_step(scores, scale, peak, total)
    value_tile = load_tile(v, first_key + local, columns, v_row, keys, dim, MASKED, CHECKED)
    sums = tl.dot(weights.to(value_tile.dtype), value_tile, sums * shrink[:, None], input_precision="ieee")
    return sums, peak, total


@triton.jit(do_not_specialize=["heads", "group", "batch_patterns", "head_patterns", "split_shift", "bit_words"])
def forward(
    q, k, v, out, lse, full_ptr, full_idx, part_ptr, part_idx, part_bits,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, group, batch_patterns, head_patterns, queries, keys, dim, tiles, block_rows, block_q, block_k,
    split_shift, bit_words, scale,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """A program: one tile of query rows. The last rows start first, since under a causal mask they are the longest."""
    tile_index = tiles - 1 - tl.program_id(0) % tiles
    line = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = line // heads, line % heads
    first_row = tile_index * TILE_Q
    block_row = (batch * batch_patterns + head * head_patterns) * block_rows + first_row // block_q

    rows, columns = first_row + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    tile = load_tile(q + batch * q_batch + head * q_head, rows, columns, q_row, queries, dim, True, CHECKED)
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head

    sums = tl.zeros([TILE_Q, DIM], tl.float32)
    peak = tl.full([TILE_Q], float("-inf"), tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    splits = (1 << split_shift) - 1

    start, stop = tl.load(full_ptr + block_row), tl.load(full_ptr + block_row + 1)
    for step in range(start << split_shift, stop << split_shift):
        first_key = tl.load(full_idx + (step >> split_shift)) * block_k + (step & splits) * TILE_K
        sums, peak, total = attend(
            tile, sums, peak, total, k, v, k_row, v_row, first_key, part_bits, 0, keys, dim, scale,
            False, TILE_K, DIM, CHECKED,
        )  # fmt: skip

    start, stop = tl.load(part_ptr + block_row), tl.load(part_ptr + block_row + 1)
    row_words = part_bits + (first_row % block_q + tl.arange(0, TILE_Q)) * bit_words
    for step in range(start << split_shift, stop << split_shift):
        position = step >> split_shift
        first_column = (step & splits) * TILE_K
        first_key = tl.load(part_idx + position) * block_k + first_column
        words = row_words + position.to(tl.int64) * block_q * bit_words + first_column // 32
        sums, peak, total = attend(
            tile, sums, peak, total, k, v, k_row, v_row, first_key, words, first_column % 32, keys, dim, scale,
            True, TILE_K, DIM, CHECKED,
        )  # fmt: skip

    inverse, ends = softmax_end(peak, total)
    own = line * queries
    store_tile(out + own * dim, sums * inverse[:, None], rows, columns, dim, queries, dim, CHECKED)
    tl.store(lse + own + rows, ends, mask=rows < queries)


def block_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], block: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse fp32 [B, Hq, Sq]), contiguous; a query without a key gives 0 and -inf."""
    own, (q, k, v) = q.shape[-1], (whole_rows(each) for each in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return trimmed(out, own), lse
    row, grid, dim = config("forward", q, block), Grid.of(q, k, layout, block), q.shape[-1]
    tiles = grid.block_rows * (block[0] // row.blocks["TILE_Q"])
    forward[(tiles * grid.batch * grid.heads,)](
        q, k, v, out, lse, *layout[:5], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        grid.heads, grid.group, *grid.pattern_strides, q.shape[2], k.shape[2], dim, tiles, grid.block_rows, *block,
        (block[1] // row.blocks["TILE_K"]).bit_length() - 1, words_of(block), float(scale) * LOG2E,
        DIM=padded_dim(dim), CHECKED=checks_columns(row, dim), **row.launch,
    )  # fmt: skip
    return trimmed(out, own), lse


POINTERS = "q:* k:* v:* out:* lse:*fp32 full_ptr:*i32 full_idx:*i32 part_ptr:*i32 part_idx:*i32 part_bits:*i32"
NUMBERS = (
    "q_batch:i32 q_head:i32 q_row:i32 k_batch:i32 k_head:i32 k_row:i32 v_batch:i32 v_head:i32 v_row:i32 "
    "heads:i32 group:i32 batch_patterns:i32 head_patterns:i32 queries:i32 keys:i32 dim:i32 tiles:i32 block_rows:i32 "
    "block_q:i32 block_k:i32 split_shift:i32 bit_words:i32 scale:fp32"
)


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row."""
    for row, checks in variants("forward", arch):
        yield compilation("forward", POINTERS, NUMBERS, row, checks, wide="TILE_Q")
