"""The gate's questions: how a site can run densely or sparsely, at its real shapes, as calls to be measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from surgery.kernels.layouts import Blocks
from surgery.kernels.layouts.convert import edges_from_blocks
from surgery.kernels.layouts.cost import Pattern
from surgery.kernels.layouts.cost import choose as rank
from surgery.kernels.operators import (
    BlockWeight,
    FeedForward,
    block_attention,
    block_linear,
    edge_attention,
    gated_attention,
    gathered_ffn,
    pack_modulation,
    packed_modulation,
)
from surgery.kernels.tuning.pick import dtype_name
from surgery.lowering.gate import Decision, Question, choose

MOST_EDGES = 1 << 25
"""Above this a list of edges takes more room than any of its speed is worth."""
HOPELESS = 4.0
"""A layout predicted so many times slower than dense is not measured."""


def choose_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, **options: Any) -> Decision:
    """Attention under a pattern: `block`, `edge` or `dense` (scaled_dot_product_attention with a mask, causal flag where
    that is the whole pattern). q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D]; `options` as of `choose`."""
    batch, heads, queries, dim = q.shape
    name = dtype_name(q.dtype)
    pattern = Pattern.of_blocks(blocks, heads, dim, name)
    ranked = rank(pattern, "cpu" if q.device.type == "cpu" else "sm90")
    seconds = {cost.layout: cost.seconds for cost in ranked.costs}
    candidates: dict[str, Callable[[], Any]] = {"block": lambda: block_attention(q, k, v, blocks)}
    pairs = pattern.density * queries * blocks.keys * blocks.patterns
    if pairs <= MOST_EDGES and seconds["edge"] <= HOPELESS * seconds["dense"]:
        edges = edges_from_blocks(blocks)
        candidates["edge"] = lambda: edge_attention(q, k, v, edges)
    shape = {"B": batch, "H": heads, "KV": k.shape[1], "Sq": queries, "Sk": k.shape[2], "D": dim, "M": blocks.patterns}
    shape |= dict(zip(("BM", "BN"), blocks.block, strict=True))
    question = Question("attention", shape, name, pattern.density)
    return choose(question, dense_attention(q, k, v, blocks), candidates, device=q.device, **options)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Callable[[], Tensor]:
    """The dense way to the same numbers: the best that plain PyTorch has."""
    grouped = q.shape[1] != k.shape[1]
    mask = blocks.dense_mask()
    triangle = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril(mask.shape[-1] - mask.shape[-2])
    if mask.shape[-1] == mask.shape[-2] and bool((mask == triangle).all()):
        return lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if mask.all():
        return lambda: scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    full = mask.reshape(-1, q.shape[1] if blocks.patterns > 1 else 1, *mask.shape[-2:])
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=full, enable_gqa=grouped)


def choose_feed_forward(
    x: Tensor, weights: FeedForward, blocks: Tensor, *, block: int = 64, **options: Any
) -> Decision:
    """A feed-forward over listed blocks of channels: `gathered` or `dense`. x [T, d], blocks int32 [N]."""
    total = -(-weights.up.shape[0] // block)
    kept = int((blocks >= 0).sum())
    rows = weights.with_rows()
    shape = {"T": x.reshape(-1, x.shape[-1]).shape[0], "d": x.shape[-1], "f": weights.up.shape[0], "block": block}
    question = Question(f"feed-forward {weights.activation}", shape, dtype_name(x.dtype), kept / total)
    every = torch.arange(total, dtype=torch.int32, device=x.device)
    return choose(
        question,
        lambda: gathered_ffn(x, rows, every, block=block, dense_above=0.0),
        {"gathered": lambda: gathered_ffn(x, rows, blocks, block=block, dense_above=1.0, check=False)},
        device=x.device,
        **options,
    )


def choose_linear(x: Tensor, weight: BlockWeight, bias: Tensor | None = None, **options: Any) -> Decision:
    """A linear layer whose weight lost blocks: `block` or `dense` (the weight with zeros). x [.., in]."""
    whole = weight.dense()
    share = weight.values.numel() / whole.numel()
    rows = x.reshape(-1, x.shape[-1])
    shape = {"T": rows.shape[0], "in": whole.shape[1], "out": whole.shape[0], "block": weight.values.shape[1]}
    question = Question("block-linear", shape, dtype_name(x.dtype), share)
    return choose(
        question,
        lambda: linear(x, whole, bias),
        {"block": lambda: block_linear(x, weight, bias)},
        device=x.device,
        **options,
    )


def choose_modulation(c: Tensor, weights: list[Tensor], biases: list[Tensor], **options: Any) -> Decision:
    """Modulations that read the same c [B, K]: `dense` (a linear per block), `hoisted` (one), `packed` (one native call
    over a weight laid out once)."""
    weight, bias = torch.cat(weights), torch.cat(biases)
    packed = pack_modulation(weight)
    shape = {"B": c.shape[0], "K": c.shape[1], "N": len(weight), "blocks": len(weights)}
    return choose(
        Question("modulation", shape, dtype_name(c.dtype), 1.0),
        lambda: [linear(silu(c), each, shift) for each, shift in zip(weights, biases, strict=True)],
        {
            "hoisted": lambda: linear(silu(c), weight, bias),
            "packed": lambda: packed_modulation(c, packed, bias, len(weight)),
        },
        device=c.device,
        **options,
    )


def choose_gated(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, **options: Any) -> Decision:
    """Attention under gates: `gated` (one call that keeps no scores) or `dense` (scores, softmax and gates written out).

    q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D]. What a gate keeps does not matter: all scores are needed to know it.
    """
    bias = torch.zeros(q.shape[1], device=q.device)
    batch, heads, queries, dim = q.shape
    shape = {"B": batch, "H": heads, "KV": k.shape[1], "Sq": queries, "Sk": k.shape[2], "D": dim, "causal": int(causal)}
    return choose(
        Question("gated attention", shape, dtype_name(q.dtype), 1.0),
        lambda: gated_written_out(q, k, v, bias, scale, causal),
        {"gated": lambda: gated_attention(q, k, v, bias, scale=scale, causal=causal, count=False)},
        device=q.device,
        **options,
    )


def gated_written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, causal: bool) -> Tensor:
    """As a rewritten graph has it where it is not lowered."""
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) * scale
    if causal:
        places = torch.arange(logits.shape[-1], device=q.device)
        logits = torch.where(places <= places[: logits.shape[-2], None], logits, torch.finfo(wide).min)
    weights = torch.where(logits + bias.view(-1, 1, 1) > 0, logits.softmax(-1), 0.0)
    return torch.matmul(weights.to(v.dtype), v)
