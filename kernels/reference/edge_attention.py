"""Attention over listed edges, the slow truth: dense scores, a dense mask, plain PyTorch, any floating dtype."""

import torch
from torch import Tensor


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, edges: list[Tensor], scale: float, normalize: str, causal: bool
) -> tuple[Tensor, Tensor]:
    """out [B, Hq, Sq, D] and lse [B, Hq, Sq] (at least fp32), differentiable.

    s_ij = scale · q_i · k_j over all pairs; out_i = Σ_{j kept} exp(s_ij - lse_i) v_j, where lse_i is the log-sum-exp of
    s_ij over the kept keys ("kept") or over all keys, those with j <= i + Sk - Sq if causal ("all").
    """
    group = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))
    scores = (q @ k.transpose(-1, -2)) * scale
    kept = dense_mask(edges, q, k.shape[2])
    counted = kept if normalize == "kept" else all_keys(q.shape[2], k.shape[2], causal, q.device)
    # A row without any key has log-sum-exp -inf; 0 in its place keeps NaN out of the values and out of the gradients.
    some = counted.any(-1)
    peak = scores.detach().masked_fill(~counted, float("-inf")).amax(-1, keepdim=True) if k.shape[2] else scores
    peak = peak.masked_fill(peak == float("-inf"), 0)
    total = (scores - peak).exp().masked_fill(~counted, 0).sum(-1, keepdim=True).masked_fill(~some[..., None], 1)
    weights = (scores - peak).exp().masked_fill(~kept | ~some[..., None], 0) / total
    lse = (total.log() + peak).squeeze(-1).masked_fill(~some, float("-inf"))
    return weights @ v, lse.to(torch.promote_types(lse.dtype, torch.float32))


def dense_mask(edges: list[Tensor], q: Tensor, keys: int) -> Tensor:
    """bool [B or 1, Hq or 1, Sq, Sk] from ptr and idx."""
    ptr, idx = edges[:2]
    batch, heads, queries = q.shape[:3]
    row = torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=ptr.device), ptr.diff())
    mask = torch.zeros(ptr.numel() - 1, keys, dtype=torch.bool, device=q.device)
    mask[row, idx.long()] = True
    patterns = (ptr.numel() - 1) // queries if queries else 1
    return mask.view(batch if patterns == batch * heads else 1, heads if patterns > 1 else 1, queries, keys)


def all_keys(queries: int, keys: int, causal: bool, device: torch.device) -> Tensor:
    """bool [1, 1, Sq, Sk]: every key, or with the ends aligned those not after the query."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return (seen.tril(keys - queries) if causal else seen)[None, None]
