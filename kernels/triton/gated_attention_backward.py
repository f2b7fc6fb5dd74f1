"""Gated attention, backward: the gradient of q and of the bias in one kernel, of k and v in another, without atomics.

    p = exp(s − lse),  dA = grad_out · v,  delta = grad_out · out − grad_lse
    dz = p · dA · soft · (1 − soft) / temperature + grad_expected · σ(z) · (1 − σ(z))
    ds = p · (g · dA − delta) + dz;  dq = scale Σ_j ds k,  dk = scale Σ_i ds q,  dv = Σ_i p · g · grad_out,  dbias = Σ dz

Noise is drawn again from its hash. A program of `dq` owns a tile of queries and writes its part of the bias's gradient;
a program of `dkv` owns a tile of keys and walks the queries of every head that shares them. Each sum has one order.

Reference: `surgery.kernels.reference.gated_attention.gated_attention_backward`. Source: arXiv 2512.05865.
"""

from collections.abc import Iterator

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import (
    LN2,
    LOG2E,
    checks_columns,
    load_tile,
    padded_dim,
    store_tile,
    trimmed,
    whole_rows,
)
from surgery.kernels.triton._gates import (
    UNSPECIALIZED,
    column_keys,
    compilations_of,
    config,
    numbers,
    row_keys,
    shared_arguments,
    slopes,
    switches,
)
from torch import Tensor

import triton
import triton.language as tl

NATURAL = tl.constexpr(LOG2E)


@triton.jit
def load_lse(lse, rows, queries):
    """In base 2; 0 for a query that sees no key, whose scores are all -inf."""
    found = tl.load(lse + rows, mask=rows < queries, other=0.0) * NATURAL
    return tl.where(found == float("-inf"), 0.0, found)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dq(
    q, k, v, bias, seed, key_mask, grad_out, lse, delta, grad_expected, grad_q, grad_bias,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch,
    heads, group, biases, queries, keys, dim, shift, tiles, scale, noisy, soft, inverse,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """A program: one tile of query rows, the last ones first."""
    tile_index = tiles - 1 - tl.program_id(0) % tiles
    line = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head, own = line // heads, line % heads, line * queries
    first_row = tile_index * TILE_Q
    rows, columns = first_row + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    tile = load_tile(q + batch * q_batch + head * q_head, rows, columns, q_row, queries, dim, True, CHECKED)
    given = load_tile(grad_out + own * dim, rows, columns, dim, queries, dim, True, CHECKED)
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head
    key_mask += batch * mask_batch
    offset = tl.load(bias + line % biases) * NATURAL
    expected = tl.load(grad_expected + line)
    logs = load_lse(lse + own, rows, queries)
    shared = tl.load(delta + own + rows, mask=rows < queries, other=0.0)
    ends = tl.where(rows < queries, tl.minimum(rows + shift + 1, keys), 0)
    noise_rows = row_keys(seed, line, rows) if GATED else rows

    sums = tl.zeros([TILE_Q, DIM], tl.float32)
    moved = tl.zeros([TILE_Q], tl.float32)
    for first_key in range(0, tl.minimum(first_row + TILE_Q + shift, keys), TILE_K):
        key_rows = first_key + tl.arange(0, TILE_K)
        key_tile = load_tile(k, key_rows, columns, k_row, keys, dim, True, CHECKED)
        value_tile = load_tile(v, key_rows, columns, v_row, keys, dim, True, CHECKED)
        scores = tl.dot(tile, tl.trans(key_tile), input_precision="ieee") * scale
        da = tl.dot(given, tl.trans(value_tile), input_precision="ieee")
        seen = tl.load(key_mask + key_rows, mask=key_rows < keys, other=0) != 0
        scores = tl.where(seen[None, :] & (key_rows[None, :] < ends[:, None]), scores, float("-inf"))
        words = noise_rows[:, None] ^ column_keys(key_rows)[None, :] if GATED else scores
        ds, weights, dz = slopes(
            scores, da, logs[:, None], shared[:, None], offset, expected, words, noisy, soft, inverse, GATED
        )
        moved += tl.sum(dz, 1)
        sums = tl.dot(ds.to(key_tile.dtype), key_tile, sums, input_precision="ieee")

    store_tile(grad_q + own * dim, sums * (scale * LN2), rows, columns, dim, queries, dim, CHECKED)
    tl.store(grad_bias + line * tiles + tile_index, tl.sum(moved, 0))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dkv(
    q, k, v, bias, seed, key_mask, grad_out, lse, delta, grad_expected, grad_k, grad_v,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch,
    heads, group, biases, queries, keys, dim, shift, tiles, scale, noisy, soft, inverse,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """A program: one tile of keys of a key head; scores are held transposed, keys × queries."""
    tile_index = tl.program_id(0) % tiles
    key_line = (tl.program_id(0) // tiles).to(tl.int64)
    key_heads = heads // group
    batch, key_head = key_line // key_heads, key_line % key_heads
    first_key = tile_index * TILE_K
    key_rows, columns = first_key + tl.arange(0, TILE_K), tl.arange(0, DIM)
    key_tile = load_tile(k + batch * k_batch + key_head * k_head, key_rows, columns, k_row, keys, dim, True, CHECKED)
    value_tile = load_tile(v + batch * v_batch + key_head * v_head, key_rows, columns, v_row, keys, dim, True, CHECKED)
    seen = tl.load(key_mask + batch * mask_batch + key_rows, mask=key_rows < keys, other=0) != 0
    noise_columns = column_keys(key_rows) if GATED else key_rows
    start = tl.maximum(first_key - shift, 0) // TILE_Q * TILE_Q

    key_sums = tl.zeros([TILE_K, DIM], tl.float32)
    value_sums = tl.zeros([TILE_K, DIM], tl.float32)
    for member in range(group):
        head = key_head * group + member
        line = batch * heads + head
        own = line * queries
        offset = tl.load(bias + line % biases) * NATURAL
        expected = tl.load(grad_expected + line)
        for first_row in range(start, queries, TILE_Q):
            rows = first_row + tl.arange(0, TILE_Q)
            tile = load_tile(q + batch * q_batch + head * q_head, rows, columns, q_row, queries, dim, True, CHECKED)
            given = load_tile(grad_out + own * dim, rows, columns, dim, queries, dim, True, CHECKED)
            logs = load_lse(lse + own, rows, queries)
            shared = tl.load(delta + own + rows, mask=rows < queries, other=0.0)
            ends = tl.where(rows < queries, tl.minimum(rows + shift + 1, keys), 0)
            scores = tl.dot(key_tile, tl.trans(tile), input_precision="ieee") * scale
            da = tl.dot(value_tile, tl.trans(given), input_precision="ieee")
            scores = tl.where(seen[:, None] & (key_rows[:, None] < ends[None, :]), scores, float("-inf"))
            words = noise_columns[:, None] ^ row_keys(seed, line, rows)[None, :] if GATED else scores
            ds, weights, dz = slopes(
                scores, da, logs[None, :], shared[None, :], offset, expected, words, noisy, soft, inverse, GATED
            )
            value_sums = tl.dot(weights.to(given.dtype), given, value_sums, input_precision="ieee")
            key_sums = tl.dot(ds.to(tile.dtype), tile, key_sums, input_precision="ieee")

    own_keys = key_line * keys * dim
    store_tile(grad_k + own_keys, key_sums * (scale * LN2), key_rows, columns, dim, keys, dim, CHECKED)
    store_tile(grad_v + own_keys, value_sums, key_rows, columns, dim, keys, dim, CHECKED)


def gated_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    grad_expected: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    key_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    gates: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dbias) in the dtypes of q, k, v and bias, contiguous."""
    given = shared_arguments(q, k, v, bias, seed, key_mask)
    grad_out = grad_out.to(q.dtype)
    delta = (grad_out.float() * out.float()).sum(-1) - grad_lse
    common = (*given, whole_rows(grad_out).contiguous(), lse.contiguous(), delta, grad_expected.float().contiguous())
    sizes, rest = numbers(*given[:4], given[5], causal), (scale * LOG2E, *switches(gates, seed, temperature))
    dim = given[0].shape[3]
    fixed = {"DIM": padded_dim(dim), "GATED": gates != "hard"}
    grads = [torch.empty(each.shape, dtype=each.dtype, device=q.device) for each in given[:3]]

    row, lines = config("dq", q), q.shape[0] * q.shape[1]
    tiles = -(-q.shape[2] // row.blocks["TILE_Q"])
    grad_bias = torch.empty(lines, tiles, dtype=torch.float32, device=q.device)
    if lines * tiles:
        fixed["CHECKED"] = checks_columns(row, dim)
        dq[(lines * tiles,)](*common, grads[0], grad_bias, *sizes, tiles, *rest, **fixed, **row.launch)

    row = config("dkv", q)
    tiles = -(-k.shape[2] // row.blocks["TILE_K"])
    if k.shape[0] * k.shape[1] * tiles:
        grid = (k.shape[0] * k.shape[1] * tiles,)
        fixed["CHECKED"] = checks_columns(row, dim)
        dkv[grid](*common, *grads[1:], *sizes, tiles, *rest, **fixed, **row.launch)
    return *(trimmed(each, q.shape[3]) for each in grads), grad_bias.sum(-1).view(-1, bias.numel()).sum(0).to(bias.dtype)


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row of both kernels, with hard gates and with gates that learn."""
    shared, switched = "grad_out:* lse:*fp32 delta:*fp32 grad_expected:*fp32", ({"GATED": False}, {"GATED": True})
    file = "gated_attention_backward"
    yield from compilations_of(file, "dq", f"{shared} grad_q:* grad_bias:*fp32", arch, "TILE_Q", switched)
    yield from compilations_of(file, "dkv", f"{shared} grad_k:* grad_v:*", arch, "TILE_K", switched)
