"""The gate's question about a fixed pattern of attention: tiles, single edges, or a mask on the dense call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from surgery.kernels.layouts.cost import Pattern
from surgery.kernels.layouts.cost import choose as rank
from surgery.kernels.layouts.rules import Rules
from surgery.kernels.operators import pattern_attention
from surgery.kernels.tuning.pick import dtype_name
from surgery.lowering.gate import Decision, Question, choose
from surgery.lowering.sites import HOPELESS, MOST_EDGES


def choose_pattern(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rules: Rules,
    *,
    causal: bool,
    normalize: str,
    mask: Tensor | None = None,
    **options: Any,
) -> Decision:
    """Attention under rules: `block`, `edge`, or `dense`, the same numbers from a mask that is made anew at each call, as
    in the graph. q [B, Hq, S, D], k and v [B, Hkv, S, D]; mask as of pattern_attention; `options` as of `choose`."""
    batch, heads, length, dim = q.shape
    rules = rules.to(q.device)
    name = dtype_name(q.dtype)
    blocks = rules.blocks(length, length, causal)
    pattern = Pattern.of_blocks(blocks, heads, dim, name)
    seconds = {cost.layout: cost.seconds for cost in rank(pattern, "cpu" if q.device.type == "cpu" else "sm90").costs}

    def run(kind: str) -> Callable[[], Tensor]:
        return lambda: pattern_attention(q, k, v, rules, mask=mask, causal=causal, normalize=normalize, kind=kind)

    candidates = {"block": run("block")} if normalize == "kept" else {}
    few = pattern.density * length * length * heads <= MOST_EDGES
    if normalize == "all" or few and seconds["edge"] <= HOPELESS * seconds["dense"]:
        candidates["edge"] = run("edge")
    shape = {"B": batch, "H": heads, "KV": k.shape[1], "S": length, "D": dim, "block": rules.block}
    shape |= {"causal": int(causal), "masked": int(mask is not None)}
    question = Question(f"attention pattern, normalize={normalize}", shape, name, pattern.density)
    dense = _dense(q, k, v, rules, mask, causal, normalize)
    return choose(question, dense, candidates, device=q.device, **options)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, rules: Rules, mask: Tensor | None, causal: bool, normalize: str
) -> Callable[[], Tensor]:
    """What the graph runs where nothing is faster."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]

    def kept() -> Tensor:
        found = rules.mask(length, length, causal)
        return found if mask is None else found & (mask if mask.dtype == bool else mask > -1e4)

    def weighted() -> Tensor:
        key, value = (each.repeat_interleave(group, 1) if group > 1 else each for each in (k, v))
        scores = q @ key.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores if not causal else scores.masked_fill(~scores.new_ones(length, length).tril().bool(), -1e30)
        return scores.softmax(-1).where(kept(), 0.0) @ value

    if normalize == "all":
        return weighted
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=kept(), enable_gqa=group > 1)
