"""Decoding over listed cache blocks, split over the list: `split` sums each part of a list, `merge` joins the parts.

q [B, Hq, Tq, D], k and v [B, Hkv, Sk, D]; fp32, fp16, bf16; sums in fp32. The tokens of all query heads that share a KV
head are rows of one tile, so a key is read once for all of them. A tile of keys may span several blocks of the list:
any block size is served by the same code.

Reference: `surgery.kernels.reference.block_decode`. Source: Flash-Decoding (Dao et al., 2023).
"""

from collections.abc import Iterator
from itertools import product

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import LOG2E, padded_dim, softmax_step
from surgery.kernels.tuning import Config, architecture, pick, shipped
from torch import Tensor

import triton
import triton.language as tl

NARROW = 16
INTERPRETED_PROCESSORS = 2
NOWHERE = tl.constexpr(1 << 30)


@triton.jit
def split(
    q, k, v, block_idx, lengths, sums_out, peak_out, total_out,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    kv_heads, group, tokens, keys, dim, listed, block, tiles_each, scale,
    ROWS: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A program: some rows of one KV head over `tiles_each` tiles of its list. Parts are [line, part, row]."""
    line, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, kv_head = line // kv_heads, line % kv_heads
    rows, columns = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    count = group * tokens
    head, token = kv_head * group + rows // tokens, rows % tokens
    held = (rows < count)[:, None] & (columns < dim)[None, :]
    places = q + batch * q_batch + head[:, None] * q_head + token.to(tl.int64)[:, None] * q_row + columns[None, :]
    tile = tl.load(places, mask=held, other=0.0)

    filled = tl.minimum(tl.load(lengths + batch), keys)
    # One past the last key that a row's token sees; no row sees more than the last token.
    limit = tl.minimum(tl.load(lengths + batch) - tokens + token + 1, filled)
    k += batch * k_batch + kv_head * k_head
    v += batch * v_batch + kv_head * v_head
    block_idx += line * listed

    sums = tl.zeros([ROWS, DIM], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    positions = listed * block
    first, last = part * tiles_each * TILE_K, tl.minimum((part + 1) * tiles_each * TILE_K, positions)
    for start in range(first, last, TILE_K):
        position = start + tl.arange(0, TILE_K)
        number = tl.load(block_idx + position // block, mask=position < positions, other=-1)
        key = tl.where(number >= 0, number * block + position % block, NOWHERE)
        exists = (key < filled)[:, None] & (columns < dim)[None, :]
        at = key.to(tl.int64)[:, None]
        key_tile = tl.load(k + at * k_row + columns[None, :], mask=exists, other=0.0)
        scores = tl.dot(tile, tl.trans(key_tile), input_precision="ieee")
        scores = tl.where(key[None, :] < limit[:, None], scores, float("-inf"))
        weights, shrink, peak, total = softmax_step(scores, scale, peak, total)
        value_tile = tl.load(v + at * v_row + columns[None, :], mask=exists, other=0.0)
        sums = tl.dot(weights.to(value_tile.dtype), value_tile, sums * shrink[:, None], input_precision="ieee")

    own = (line * tl.num_programs(1) + part) * count + rows
    tl.store(sums_out + own[:, None] * dim + columns[None, :], sums, mask=held)
    tl.store(peak_out + own, peak, mask=rows < count)
    tl.store(total_out + own, total, mask=rows < count)


@triton.jit
def merge(
    sums_in, peak_in, total_in, out, count, dim, parts,
    PARTS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A program: one row, its parts in their order, PARTS at a time. Peaks are in base 2."""
    line, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, DIM)
    sums = tl.zeros([DIM], tl.float32)
    peak = tl.zeros([1], tl.float32) + float("-inf")
    total = tl.zeros([1], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        own = (line * parts + part) * count + row
        peaks = tl.load(peak_in + own, mask=part < parts, other=float("-inf"))
        totals = tl.load(total_in + own, mask=part < parts, other=0.0)
        held = (part < parts)[:, None] & (columns < dim)[None, :]
        some = tl.load(sums_in + own[:, None] * dim + columns[None, :], mask=held, other=0.0)
        peak_now = tl.maximum(peak, tl.max(peaks, 0))
        safe = tl.where(peak_now == float("-inf"), 0.0, peak_now)
        weights, shrink = tl.exp2(peaks - safe), tl.exp2(peak - safe)
        sums = sums * shrink + tl.sum(some * weights[:, None], 0)
        total = total * shrink + tl.sum(totals * weights, 0)
        peak = peak_now
    ended = sums / tl.where(total == 0.0, 1.0, total)
    place = out + (line * count + row) * dim + columns
    tl.store(place, ended.to(out.dtype.element_ty), mask=columns < dim)


def block_decode(
    q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float
) -> Tensor:
    """`reference.block_decode`; contiguous [B, Hq, Tq, D]."""
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    (batch, heads, tokens, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    group, listed = heads // kv_heads, block_idx.shape[2]
    lines, count = batch * kv_heads, group * tokens
    row = config(q, count)
    row_tiles = -(-count // row.blocks["ROWS"])
    tiles = -(-listed * block // row.blocks["TILE_K"])
    parts, each = partition(tiles, lines * row_tiles, processors(q.device))
    sums = torch.empty(lines * parts * count, dim, dtype=torch.float32, device=q.device)
    peak, total = (torch.empty(lines * parts * count, dtype=torch.float32, device=q.device) for _ in range(2))
    split[(lines, parts, row_tiles)](
        q, k, v, block_idx.contiguous(), lengths.contiguous(), sums, peak, total,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        kv_heads, group, tokens, keys, dim, listed, block, each, float(scale) * LOG2E,
        DIM=padded_dim(dim), **row.launch,
    )  # fmt: skip
    ending = pick("block_decode", architecture(q.device), torch.float32, dim, "merge")
    merge[(lines, count)](sums, peak, total, out, count, dim, parts, DIM=padded_dim(dim), **ending.launch)
    return out


def config(q: Tensor, count: int) -> Config:
    """The shipped row for this many rows of queries: few fit a narrow tile, the more fill a wide one."""
    tile = "narrow" if count <= NARROW else "wide"
    return pick("block_decode", architecture(q.device), q.dtype, q.shape[-1], tile)


def partition(tiles: int, programs: int, processors: int) -> tuple[int, int]:
    """(parts, tiles in each): enough programs for every processor to hold two, and none without a tile."""
    wanted = max(1, min(tiles, -(-2 * processors // programs)))
    each = max(1, -(-tiles // wanted))
    return max(1, -(-tiles // each)), each


def processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


SPLIT = (
    "q:* k:* v:* block_idx:*i32 lengths:*i32 sums_out:*fp32 peak_out:*fp32 total_out:*fp32 "
    "q_batch:i32 q_head:i32 q_row:i32 k_batch:i32 k_head:i32 k_row:i32 v_batch:i32 v_head:i32 v_row:i32 "
    "kv_heads:i32 group:i32 tokens:i32 keys:i32 dim:i32 listed:i32 block:i32 tiles_each:i32 scale:fp32"
)
MERGE = "sums_in:*fp32 peak_in:*fp32 total_in:*fp32 out:* count:i32 dim:i32 parts:i32"
SMALLEST = 64
"""The smallest head dim that the table has a row for."""
ALIGNED = ("q_head", "q_row", "k_head", "k_row", "v_head", "v_row", "q_batch", "k_batch", "v_batch", "dim")


def compilations(arch: str) -> Iterator[Compilation]:
    """Every shipped row, the smallest for narrower heads too; `merge` in each type it writes."""
    for row in shipped("block_decode", arch):
        dims = (padded_dim(1), row.dim) if row.dim == SMALLEST else (row.dim,)
        dtypes = ("bf16", "fp32") if row.tile == "merge" else (row.dtype,)
        for dim, dtype in product(dims, dtypes):
            yield _compilation(*(("merge", MERGE) if row.tile == "merge" else ("split", SPLIT)), row, dtype, dim)


def _compilation(kernel: str, arguments: str, row: Config, dtype: str, dim: int) -> Compilation:
    types = [word.split(":") for word in arguments.split()]
    signature = {name: f"*{dtype}" if kind == "*" else kind for name, kind in types}
    constants = {**row.blocks, "DIM": dim}
    products = kernel == "split" and dtype == "bf16"
    expects = {"gfx942": ("mfma",)} if products else {}
    if products and row.blocks["ROWS"] >= 64:
        expects["sm90"] = ("wgmma",)
    return Compilation(
        kernel=f"block_decode:{kernel}",
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=tuple(name for name, kind in signature.items() if kind.startswith("*") or name in ALIGNED),
        options=row.options,
        expects=expects,
        label=f"{kernel} {dtype} D={dim} {row.tile}",
    )
