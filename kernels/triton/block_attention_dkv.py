"""Block-sparse attention, gradients of keys and values: dv = pᵀ dout, dk = scale · [p ∘ (dout vᵀ - delta)]ᵀ q.

A program owns a tile of keys of one key head: for each query head of its group in turn it walks the transposed index,
sorted, full blocks and then partial ones. The order of every sum is fixed and nothing is added across programs: two
runs give the same bits. Everything is held transposed (keys × queries), so that no tile is turned before a product.

Reference: `surgery.kernels.reference.block_attention.backward`. Source: FlashAttention-2 (Dao, 2023), algorithm 2.
"""

from collections.abc import Iterator, Sequence

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._blocks import Grid, compilation, config, variants, words_of
from surgery.kernels.triton._common import checks_columns, load_tile, padded_dim, softmax_again, store_tile, trimmed, whole_rows
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def unpack_column_bits(words, bit_words, key_columns, WORDS: tl.constexpr):
    """Bool [keys, queries] from bits stored by query row: `unpack_bits`, turned."""
    chosen = tl.load(words)[None, :] + tl.zeros_like(key_columns)[:, None]
    for word in tl.static_range(1, WORDS):
        chosen = tl.where(key_columns[:, None] >= 32 * word, tl.load(words + word)[None, :], chosen)
    return ((chosen >> (key_columns[:, None] & 31)) & 1) != 0


@triton.jit
def descend(
    grad_key, grad_value, key_tile, value_tile, q, grad_out, lse, delta, q_row, grad_row, first_row, words,
    first_bit, bit_words, queries, dim, scale,
    MASKED: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """Take in one tile of query rows."""
    rows, columns = first_row + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    tile = load_tile(q, rows, columns, q_row, queries, dim, MASKED, CHECKED)
    if MASKED:
        ends = tl.load(lse + rows, mask=rows < queries, other=0.0)
        ends = tl.where(ends == float("-inf"), 0.0, ends)
        middle = tl.load(delta + rows, mask=rows < queries, other=0.0)
    else:
        ends = tl.load(lse + rows)
        middle = tl.load(delta + rows)
    scores = tl.dot(key_tile, tl.trans(tile), input_precision="ieee")
    if MASKED:
        kept = unpack_column_bits(words, bit_words, first_bit + tl.arange(0, TILE_K), (TILE_K + 31) // 32)
        scores = tl.where(kept, scores, float("-inf"))
    weights = softmax_again(scores, scale, ends[None, :], tile.dtype == tl.float32)
    grad_tile = load_tile(grad_out, rows, columns, grad_row, queries, dim, MASKED, CHECKED)
    grad_value = tl.dot(weights.to(grad_tile.dtype), grad_tile, grad_value, input_precision="ieee")
    pulls = tl.dot(value_tile, tl.trans(grad_tile), input_precision="ieee")
    slopes = weights * (pulls - middle[None, :])
    grad_key = tl.dot(slopes.to(tile.dtype), tile, grad_key, input_precision="ieee")
    return grad_key, grad_value


@triton.jit(do_not_specialize=["heads", "group", "batch_patterns", "head_patterns", "split_shift", "bit_words"])
def dkv(
    q, k, v, grad_out, lse, delta, grad_k, grad_v,
    full_ptr, full_idx, part_ptr, part_idx, part_map, part_bits,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head, grad_row,
    heads, group, batch_patterns, head_patterns, queries, keys, dim, tiles, block_columns, block_q, block_k,
    split_shift, bit_words, scale,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """A program: one tile of keys. The first keys start first, since under a causal mask they have the most queries."""
    tile_index = tl.program_id(0) % tiles
    line = (tl.program_id(0) // tiles).to(tl.int64)
    key_heads = heads // group
    batch, key_head = line // key_heads, line % key_heads
    first_key = tile_index * TILE_K
    column_in_block = first_key % block_k

    places, columns = first_key + tl.arange(0, TILE_K), tl.arange(0, DIM)
    key_tile = load_tile(k + batch * k_batch + key_head * k_head, places, columns, k_row, keys, dim, True, CHECKED)
    value_tile = load_tile(v + batch * v_batch + key_head * v_head, places, columns, v_row, keys, dim, True, CHECKED)
    grad_key = tl.zeros([TILE_K, DIM], tl.float32)
    grad_value = tl.zeros([TILE_K, DIM], tl.float32)
    splits = (1 << split_shift) - 1

    for member in range(0, group):
        head = key_head * group + member
        block_column = (batch * batch_patterns + head * head_patterns) * block_columns + first_key // block_k
        own_q = q + batch * q_batch + head * q_head
        own_grad = grad_out + batch * grad_batch + head * grad_head
        own = (batch * heads + head) * queries

        start, stop = tl.load(full_ptr + block_column), tl.load(full_ptr + block_column + 1)
        for step in range(start << split_shift, stop << split_shift):
            first_row = tl.load(full_idx + (step >> split_shift)) * block_q + (step & splits) * TILE_Q
            grad_key, grad_value = descend(
                grad_key, grad_value, key_tile, value_tile, own_q, own_grad, lse + own, delta + own, q_row, grad_row,
                first_row, part_bits, 0, bit_words, queries, dim, scale, False, TILE_Q, TILE_K, DIM, CHECKED,
            )  # fmt: skip

        start, stop = tl.load(part_ptr + block_column), tl.load(part_ptr + block_column + 1)
        for step in range(start << split_shift, stop << split_shift):
            row_in_block = (step & splits) * TILE_Q
            first_row = tl.load(part_idx + (step >> split_shift)) * block_q + row_in_block
            block_words = tl.load(part_map + (step >> split_shift)).to(tl.int64) * block_q * bit_words
            words = part_bits + block_words + column_in_block // 32
            words += (row_in_block + tl.arange(0, TILE_Q)) * bit_words
            grad_key, grad_value = descend(
                grad_key, grad_value, key_tile, value_tile, own_q, own_grad, lse + own, delta + own, q_row, grad_row,
                first_row, words, column_in_block % 32, bit_words, queries, dim, scale, True,
                TILE_Q, TILE_K, DIM, CHECKED,
            )  # fmt: skip

    offset = line * keys * dim
    store_tile(grad_k + offset, grad_key * scale, places, columns, dim, keys, dim, CHECKED)
    store_tile(grad_v + offset, grad_value, places, columns, dim, keys, dim, CHECKED)


def block_attention_dkv(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor,
    layout: Sequence[Tensor], block: tuple[int, int], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dk, dv) as k and v, contiguous; delta is what `block_attention_dq` gave."""
    own, (grad_out, q, k, v) = q.shape[-1], (whole_rows(each) for each in (grad_out, q, k, v))
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if grad_k.numel() == 0:
        return trimmed(grad_k, own), trimmed(grad_v, own)
    if q.numel() == 0:
        return trimmed(grad_k.zero_(), own), trimmed(grad_v.zero_(), own)
    row, grid, dim = config("dkv", q, block), Grid.of(q, k, layout, block), q.shape[-1]
    tiles = grid.block_columns * (block[1] // row.blocks["TILE_K"])
    strides = [stride for each in (q, k, v, grad_out) for stride in each.stride()[:3]]
    dkv[(tiles * grid.batch * k.shape[1],)](
        q, k, v, grad_out, lse.contiguous(), delta, grad_k, grad_v, *layout[5:], layout[4], *strides,
        grid.heads, grid.group, *grid.pattern_strides, q.shape[2], k.shape[2], dim, tiles, grid.block_columns, *block,
        (block[0] // row.blocks["TILE_Q"]).bit_length() - 1, words_of(block), float(scale),
        DIM=padded_dim(dim), CHECKED=checks_columns(row, dim), **row.launch,
    )  # fmt: skip
    return trimmed(grad_k, own), trimmed(grad_v, own)


POINTERS = (
    "q:* k:* v:* grad_out:* lse:*fp32 delta:*fp32 grad_k:* grad_v:* "
    "full_ptr:*i32 full_idx:*i32 part_ptr:*i32 part_idx:*i32 part_map:*i32 part_bits:*i32"
)
NUMBERS = (
    "q_batch:i32 q_head:i32 q_row:i32 k_batch:i32 k_head:i32 k_row:i32 v_batch:i32 v_head:i32 v_row:i32 "
    "grad_batch:i32 grad_head:i32 grad_row:i32 "
    "heads:i32 group:i32 batch_patterns:i32 head_patterns:i32 queries:i32 keys:i32 dim:i32 tiles:i32 block_columns:i32 "
    "block_q:i32 block_k:i32 split_shift:i32 bit_words:i32 scale:fp32"
)


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row."""
    for row, checks in variants("dkv", arch):
        yield compilation("dkv", POINTERS, NUMBERS, row, checks, wide="TILE_K")
