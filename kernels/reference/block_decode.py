"""Attention of a few new tokens over listed blocks of a key-value cache, as a dense masked softmax."""

import torch
from torch import Tensor


def seen(q: Tensor, k: Tensor, block_idx: Tensor, lengths: Tensor, block: int) -> Tensor:
    """bool [B, Hkv, Tq, Sk]: key j lies in a listed block and j <= lengths[b] - Tq + t."""
    tokens, keys = q.shape[2], k.shape[2]
    blocks = -(-keys // block)
    spare = torch.where((block_idx < 0) | (block_idx >= blocks), blocks, block_idx).long()
    listed = torch.zeros(*block_idx.shape[:2], blocks + 1, dtype=torch.bool, device=q.device)
    listed = listed.scatter(2, spare, True)[..., :blocks].repeat_interleave(block, 2)[..., :keys]
    last = lengths.view(-1, 1, 1) - tokens + torch.arange(tokens, device=q.device).view(-1, 1)
    return listed.unsqueeze(2) & (torch.arange(keys, device=q.device) <= last).unsqueeze(1)


def block_decode(
    q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float
) -> Tensor:
    """out[b, h, t] = Σⱼ softmaxⱼ(scale · q[b, h, t] · k[b, h', j]) v[b, h', j] over the keys seen, h' = h // (Hq / Hkv).

    q [B, Hq, Tq, D], k and v [B, Hkv, Sk, D] of any floating dtype, in which it computes; block_idx int32 [B, Hkv, N];
    lengths int32 [B]. A token that sees no key gives 0. Makes B × Hq × Tq × Sk scores.
    """
    batch, heads, tokens, dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, tokens, dim)
    mask = seen(q, k, block_idx, lengths, block).unsqueeze(2)
    scores = (grouped @ k.unsqueeze(2).transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, -1).masked_fill(~mask.any(-1, keepdim=True), 0)
    return (weights @ v.unsqueeze(2)).reshape(batch, heads, tokens, v.shape[-1])
