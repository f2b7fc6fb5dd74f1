"""Gated attention, forward: one walk over the keys, with an online softmax whose weights are gated as they come.

    out = Σ_j softmax_j(s) · g(s_j + bias) · v_j;  expected = Σ sigmoid(s + bias);  kept = Σ [s + bias > 0]

q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D]; fp32, fp16, bf16; sums in fp32. The gate reads the logit itself, not its
normalised weight, so that one pass suffices. A program owns a tile of query rows of one head; it writes its part of the
two counts, which are then summed in order. Value tiles are not skipped where no gate is open: a branch in the loop would
cost its pipelining.

Reference: `surgery.kernels.reference.gated_attention.gated_attention`. Source: arXiv 2512.05865; online softmax as in
FlashAttention-2 (Dao, 2023).
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import (
    LOG2E,
    checks_columns,
    load_tile,
    padded_dim,
    softmax_end,
    softmax_step,
    store_tile,
    trimmed,
)
from surgery.kernels.triton._gates import (
    UNSPECIALIZED,
    column_keys,
    compilations_of,
    config,
    gate,
    numbers,
    row_keys,
    shared_arguments,
    sigmoid,
    switches,
)
from torch import Tensor

import triton
import triton.language as tl

NATURAL = tl.constexpr(LOG2E)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward(
    q, k, v, bias, seed, key_mask, out, lse, expected, kept,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch,
    heads, group, biases, queries, keys, dim, shift, tiles, scale, noisy, soft, inverse,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
    GATED: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """A program: one tile of query rows, the last ones first, since under a causal mask they are the longest."""
    tile_index = tiles - 1 - tl.program_id(0) % tiles
    line = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = line // heads, line % heads
    first_row = tile_index * TILE_Q
    rows, columns = first_row + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    tile = load_tile(q + batch * q_batch + head * q_head, rows, columns, q_row, queries, dim, True, CHECKED)
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head
    key_mask += batch * mask_batch
    offset = tl.load(bias + line % biases) * NATURAL
    ends = tl.where(rows < queries, tl.minimum(rows + shift + 1, keys), 0)
    noise_rows = row_keys(seed, line, rows) if GATED else rows

    sums = tl.zeros([TILE_Q, DIM], tl.float32)
    peak = tl.full([TILE_Q], float("-inf"), tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    chances = tl.zeros([TILE_Q], tl.float32)
    opened = tl.zeros([TILE_Q], tl.int32)
    for first_key in range(0, tl.minimum(first_row + TILE_Q + shift, keys), TILE_K):
        key_rows = first_key + tl.arange(0, TILE_K)
        key_tile = load_tile(k, key_rows, columns, k_row, keys, dim, True, CHECKED)
        scores = tl.dot(tile, tl.trans(key_tile), input_precision="ieee") * scale
        seen = tl.load(key_mask + key_rows, mask=key_rows < keys, other=0) != 0
        scores = tl.where(seen[None, :] & (key_rows[None, :] < ends[:, None]), scores, float("-inf"))
        weights, shrink, peak, total = softmax_step(scores, 1.0, peak, total)
        z = scores + offset
        words = noise_rows[:, None] ^ column_keys(key_rows)[None, :] if GATED else z
        gates, smooth = gate(z, words, noisy, soft, inverse, GATED)
        if COUNT:
            chances += tl.sum(sigmoid(z), 1)
            opened += tl.sum((z > 0).to(tl.int32), 1)
        value_tile = load_tile(v, key_rows, columns, v_row, keys, dim, True, CHECKED)
        weights = (weights * gates).to(value_tile.dtype)
        sums = tl.dot(weights, value_tile, sums * shrink[:, None], input_precision="ieee")

    scaling, logs = softmax_end(peak, total)
    own = line * queries
    store_tile(out + own * dim, sums * scaling[:, None], rows, columns, dim, queries, dim, CHECKED)
    tl.store(lse + own + rows, logs, mask=rows < queries)
    if COUNT:
        tl.store(expected + line * tiles + tile_index, tl.sum(chances, 0))
        tl.store(kept + line * tiles + tile_index, tl.sum(opened, 0))


def gated_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    gates: str,
    temperature: float,
    count: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse fp32 [B, Hq, Sq], expected fp32 [B, Hq], kept int64 [B, Hq]), contiguous.

    The last two are empty without `count`. A query that sees no key gives 0 and -inf.
    """
    row, gated = config("forward", q), gates != "hard"
    tiles, lines = -(-q.shape[2] // row.blocks["TILE_Q"]), q.shape[0] * q.shape[1]
    given = shared_arguments(q, k, v, bias, seed, key_mask)
    out = torch.empty(given[0].shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    expected = torch.empty(lines, tiles, dtype=torch.float32, device=q.device)
    kept = torch.empty(lines, tiles, dtype=torch.int32, device=q.device)
    if lines * tiles:
        forward[(lines * tiles,)](
            *given, out, lse, expected, kept, *numbers(*given[:4], given[5], causal), tiles,
            scale * LOG2E, *switches(gates, seed, temperature),
            DIM=padded_dim(given[0].shape[3]), CHECKED=checks_columns(row, given[0].shape[3]),
            GATED=gated, COUNT=count or gated, **row.launch,
        )  # fmt: skip
    out = trimmed(out, q.shape[3])
    if not count:
        return out, lse, expected.new_empty(0), expected.new_empty(0, dtype=torch.int64)
    return out, lse, expected.sum(-1).view(q.shape[:2]), kept.sum(-1).view(q.shape[:2])


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, hard without and with counts, and with gates that learn."""
    pointers = "out:* lse:*fp32 expected:*fp32 kept:*i32"
    switched = ({"GATED": False, "COUNT": False}, {"GATED": False, "COUNT": True}, {"GATED": True, "COUNT": True})
    yield from compilations_of("gated_attention_forward", "forward", pointers, arch, "TILE_Q", switched)
