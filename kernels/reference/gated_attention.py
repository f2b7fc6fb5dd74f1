"""Gated attention: softmax over all keys, then a gate on the logit itself, not renormalised.

    s_ij = scale · q_i · k_j                over the keys that query i may see
    z_ij = s_ij + bias_h
    out_i = Σ_j softmax_j(s)_ij · g_ij · v_j
    gates = "hard"      g = [z > 0], a constant for gradients (its derivative is 0 almost everywhere)
            "sampled"   g = [z + n > 0] forward, sigmoid((z + n) / temperature) backward (straight through)
            "soft"      g = sigmoid((z + n) / temperature), both ways; without a seed n = 0
    expected = Σ_ij sigmoid(z_ij)           edges a sampled gate leaves open on average, whatever the temperature
    kept = Σ_ij [z_ij > 0]                  edges a hard gate leaves open

q [B, Hq, Sq, D], k, v [B, Hkv, Sk, D], bias [Hq] or [B · Hq], n of `gated_noise`. This file is the truth the kernels
are held to: it keeps queries × keys in memory, in any floating dtype.

Source: Draye, Lei, Pan, Posner, Schölkopf, "Sparse Attention Post-Training for Mechanistic Interpretability",
arXiv 2512.05865, and its authors' kernel, hrpan/splash_attention (there the temperature is 1).
"""

import torch
from surgery.kernels.reference.gated_noise import logistic
from torch import Tensor

NEVER = float("-inf")


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    gates: str = "hard",
    temperature: float = 1.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
    rows: tuple[int, int] | None = None,
    opened: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [B, Hq, Sq, D], lse [B, Hq, Sq], expected [B, Hq], kept int64 [B, Hq]), differentiable by autograd.

    rows    only these queries, [first, last): q holds all of them
    opened  hard gates decided elsewhere, to compare dtypes where a logit lies at the threshold
    """
    s, seen = scores(q, k, scale, causal, key_mask, rows)
    any_key = seen.any(-1, keepdim=True)
    safe = torch.where(any_key, s, 0)
    p = torch.where(seen, safe.softmax(-1), 0)
    lse = torch.where(any_key, safe.logsumexp(-1, keepdim=True), NEVER).squeeze(-1)
    z = s + per_head(bias, s)
    g, _ = gate(z, gates, temperature, seed, rows, opened)
    out = grouped("bhgij,bhjd->bhgid", (p * g).to(v.dtype), v)
    return out, lse, z.sigmoid().sum((-1, -2)), (z > 0).sum((-1, -2))


def gated_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    grad_expected: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    gates: str = "hard",
    temperature: float = 1.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dbias) in closed form; with `rows`, grad_out, grad_lse, out and lse hold only these queries.

    dg = p · dA and dA = grad_out · v;  ds = p · (g · dA − grad_out · out + grad_lse) + dz;
    dz = dg · soft · (1 − soft) / temperature + grad_expected · σ(z) · (1 − σ(z));  dbias = Σ dz
    """
    first, last = rows or (0, q.shape[2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s, seen = scores(q, k, scale, causal, key_mask, rows)
    z = s + per_head(bias, s)
    p = (s - lse.masked_fill(lse == NEVER, 0)[..., None]).exp()
    g, soft = gate(z, gates, temperature, seed, rows)
    da = grouped("bhgid,bhjd->bhgij", grad_out, v).to(s.dtype)
    delta = (grad_out * out).sum(-1, dtype=s.dtype) - grad_lse
    sigma = z.sigmoid()
    dz = grad_expected[..., None, None] * sigma * (1 - sigma)
    if gates != "hard":
        dz = dz + p * da * soft * (1 - soft) / temperature
    ds = (p * (g * da - delta[..., None]) + dz) * scale
    dq = grouped("bhgij,bhjd->bhgid", ds.to(k.dtype), k)
    dk = per_key(ds.to(q.dtype), q[:, :, first:last], k)
    dv = per_key((p * g).to(grad_out.dtype), grad_out, k)
    return dq, dk, dv, dz.sum((-1, -2)).flatten().view(-1, bias.numel()).sum(0)


def scores(
    q: Tensor, k: Tensor, scale: float | None, causal: bool, key_mask: Tensor | None, rows: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The logits [B, Hq, rows, Sk] in at least float32, −inf where a query may not see a key, and who sees whom."""
    queries, keys = q.shape[2], k.shape[2]
    first, last = rows or (0, queries)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = grouped("bhgid,bhjd->bhgij", q[:, :, first:last], k)
    s = s.to(torch.promote_types(s.dtype, torch.float32)) * scale
    seen = torch.ones(last - first, keys, dtype=torch.bool, device=q.device)
    if causal:
        query = torch.arange(first, last, device=q.device)
        seen = torch.arange(keys, device=q.device) <= query[:, None] + (keys - queries)
    seen = seen[None, None] if key_mask is None else seen & key_mask[:, None, None, :]
    return s.masked_fill(~seen, NEVER), seen


def gate(
    z: Tensor,
    gates: str,
    temperature: float,
    seed: Tensor | None,
    rows: tuple[int, int] | None = None,
    opened: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What multiplies the softmax, and its soft form (None for hard gates)."""
    noisy = z if seed is None else z + noise(z, seed, rows)
    hard = (noisy > 0 if opened is None else opened).to(z.dtype)
    if gates == "hard":
        return hard, None
    soft = (noisy / temperature).sigmoid()
    return (soft if gates == "soft" else hard + soft - soft.detach()), soft


def noise(z: Tensor, seed: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
    """The logistic noise of every edge of z [B, Hq, rows, Sk]."""
    batch, heads, queries, keys = z.shape
    first = rows[0] if rows else 0
    count = torch.arange(max(batch * heads, first + queries, keys), device=z.device)
    drawn = logistic(seed, count[: batch * heads], count[first : first + queries], count[:keys], z.dtype)
    return drawn.view(z.shape)


def per_head(bias: Tensor, like: Tensor) -> Tensor:
    """bias [Hq] or [B · Hq] beside logits [B, Hq, …]."""
    return bias.to(like.dtype).view(-1, like.shape[1], 1, 1)


def grouped(equation: str, x: Tensor, shared: Tensor) -> Tensor:
    """An einsum of per-query-head x [B, Hq, …] with k or v [B, Hkv, …], which is not repeated."""
    return torch.einsum(equation, x.unflatten(1, (shared.shape[1], -1)), shared).flatten(1, 2)


def per_key(weights: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """Σ over queries and the heads of a group: weights [B, Hq, Sq, Sk], x [B, Hq, Sq, D] → [B, Hkv, Sk, D]."""
    heads = like.shape[1]
    return torch.einsum("bhgij,bhgid->bhjd", weights.unflatten(1, (heads, -1)), x.unflatten(1, (heads, -1)))
