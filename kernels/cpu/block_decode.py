"""Decoding over listed cache blocks without a GPU: natively in place, or by gathering chunks of the list."""

import ctypes

import torch
from surgery.kernels.native import available, library
from torch import Tensor

CHUNK_KEYS = 1024
GATHERED_BYTES = 1 << 26


def refuse_native(
    q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float
) -> str | None:
    """Why the native kernel does not take these, or None."""
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"{q.dtype} is neither float32 nor bfloat16"
    reason = available("block_decode")
    if reason is None and q.shape[-1] % library("block_decode").lanes():
        return f"head dim {q.shape[-1]} is not a multiple of {library('block_decode').lanes()}"
    return reason


def native(q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float) -> Tensor:
    """`reference.block_decode` in C++: keys and values are read in place, sums are fp32."""
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    batch, heads, tokens, dim = q.shape
    kv_heads, keys, listed = k.shape[1], k.shape[2], block_idx.shape[2]
    chunks = max(1, -(-listed * block // CHUNK_KEYS))
    group = heads // kv_heads
    out = torch.empty(q.shape, dtype=q.dtype)
    if not out.numel():
        return out
    partial = torch.empty(batch * kv_heads * chunks * group * tokens * (dim + 2), dtype=torch.float32)
    sizes = (ctypes.c_int64 * 9)(batch, kv_heads, group, tokens, keys, dim, listed, block, chunks)
    strides = (ctypes.c_int64 * 9)(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    lists, lengths = block_idx.contiguous(), lengths.contiguous()
    run = library("block_decode").decode_fp32 if q.dtype == torch.float32 else library("block_decode").decode_bf16
    places = [ctypes.c_void_p(each.data_ptr()) for each in (q, k, v, out, lists, lengths, partial)]
    run(*places, sizes, strides, ctypes.c_float(scale), ctypes.c_int64(torch.get_num_threads()))
    return out


def gathered(q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float) -> Tensor:
    """`reference.block_decode` by PyTorch, for any device and dtype: copies some listed blocks at a time."""
    batch, heads, tokens, dim = q.shape
    kv_heads = k.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = q.reshape(batch, kv_heads, -1, dim).to(wide)
    sums = torch.zeros_like(rows)
    peak = torch.full((*rows.shape[:3], 1), float("-inf"), dtype=wide, device=q.device)
    total = torch.zeros_like(peak)
    step = max(1, GATHERED_BYTES // max(1, batch * kv_heads * block * dim * sums.element_size()))
    for some in block_idx.split(step, 2) if block_idx.shape[2] and k.shape[2] else ():
        key = (some.unsqueeze(3) * block + torch.arange(block, device=q.device)).flatten(2)
        seen = _seen(key, some.repeat_interleave(block, 2) >= 0, k.shape[2], lengths, tokens, rows.shape[2])
        at = key.clamp(0, k.shape[2] - 1).long().unsqueeze(3).expand(-1, -1, -1, dim)
        # 0 where no query looks: whatever lies there, NaN too, must not reach the sums.
        looked = seen.any(2).unsqueeze(3)
        keys, values = (each.gather(2, at).to(wide).where(looked, 0) for each in (k, v))
        scores = (rows @ keys.transpose(2, 3) * scale).masked_fill(~seen, float("-inf"))
        top = torch.maximum(peak, scores.amax(3, keepdim=True))
        safe = top.masked_fill(top == float("-inf"), 0)
        weights, shrink = torch.exp(scores - safe), torch.exp(peak - safe)
        sums, total, peak = sums * shrink + weights @ values, total * shrink + weights.sum(3, keepdim=True), top
    return torch.where(total > 0, sums / total, 0).to(q.dtype).reshape(batch, heads, tokens, dim)


def _seen(key: Tensor, listed: Tensor, keys: int, lengths: Tensor, tokens: int, rows: int) -> Tensor:
    """bool [B, Hkv, rows, n]: rows are query heads × tokens."""
    token = torch.arange(rows, device=key.device) % tokens
    last = (lengths.view(-1, 1) - tokens + token).clamp(max=keys - 1)
    return (listed & (key < keys)).unsqueeze(2) & (key.unsqueeze(2) <= last.view(-1, 1, rows, 1))
