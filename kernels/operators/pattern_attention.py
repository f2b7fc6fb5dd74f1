"""`surgery::pattern_attention`: attention under `Rules`, for queries that are the last of the keys, at any length."""

import torch
from surgery.kernels.layouts.rules import LANES, Rules, check_rules
from surgery.kernels.operators.block_attention import check_tensors
from surgery.kernels.operators.define import operator
from surgery.kernels.operators.edge_attention import NORMALIZE
from surgery.kernels.operators.pattern_decode import FEW, decode, fits
from surgery.kernels.operators.pattern_layouts import KINDS, LAYOUTS
from surgery.kernels.operators.seen_keys import HIDE, MORE, seen_keys
from surgery.kernels.operators.widths import as_wide, differ, one_width
from surgery.kernels.reference import pattern_attention as reference
from torch import Tensor
from torch.nn.functional import pad

FAR = -1e8
"""What a hidden key's score is lowered by, as far as the dtype goes: far below any score."""


def pattern_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rules: Rules,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    normalize: str = "kept",
    kind: str = "block",
) -> Tensor:
    """out_i = Σ_{j kept for i} exp(s_ij - lse_i) v_j, with s_ij = scale · q_i · k_j.

    q [B, Hq, Sq, D], k [B, Hkv, Sk, D] and v [B, Hkv, Sk, Dv], mostly of one width, any strides; query head h reads key
    head h // (Hq / Hkv). The queries are the last Sq of the Sk positions, so that a step of decoding with a cache
    computes what the whole pass would. `rules` hold a pattern for each query head. mask: [B, 1, Sq, Sk], bool or added,
    causality included; one that says which keys are padding, and nothing else beside it, costs little, any other is
    applied pair by pair. scale None is D ** -0.5.

    normalize="kept"  lse_i is over the keys kept and seen      normalize="all"  over all seen: weights sum to less than 1
    kind              "block": tiles, normalize="kept" alone; "edge": pair by pair. The numbers are the same.

    Returns [B, Hq, Sq, Dv]; a query without a key gets 0. Layouts are made once for a pattern and length, and kept.
    Raises ValueError for what does not fit, and for more keys than single blocks or edges were made for. Reference:
    `surgery.kernels.reference.pattern_attention`.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    keys = None if mask is None else seen_keys(mask, causal)
    numbers = (rules.block, rules.length, causal, factor, normalize, kind)
    return torch.ops.surgery.pattern_attention(q, k, v, rules.tensors(), mask, keys, *numbers)[0]


def check(q, k, v, rules, mask, keys, block, length, causal, scale, normalize, kind) -> None:
    """Raise ValueError unless the arguments of the operator fit together."""
    check_tensors(q, k, v)
    check_rules(rules, block, length)
    if rules[0].shape[0] != q.shape[1]:
        raise ValueError(f"the rules are for {rules[0].shape[0]} heads, q has {q.shape[1]}")
    if normalize not in NORMALIZE or kind not in KINDS:
        raise ValueError(f"normalize is one of {NORMALIZE} and kind of {KINDS}, not {normalize!r} and {kind!r}")
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries cannot be the last of {k.shape[2]} keys")
    if not scale > 0:
        raise ValueError(f"scale is {scale}: it has to be positive")


def _forward(q, k, v, rules, mask, keys, block, length, causal, scale, normalize, kind) -> tuple[Tensor, Tensor]:
    if differ(k, v):
        wide = one_width(q, k, v)
        out, lse = _forward(*wide, rules, mask, keys, block, length, causal, scale, normalize, kind)
        return *as_wide((out,), (v,)), lse
    check(q, k, v, rules, mask, keys, block, length, causal, scale, normalize, kind)
    made = Rules(block, *rules, length)
    made.refuse_longer(k.shape[2])
    more, hidden = _more(mask, keys), _hidden(keys)
    if normalize == "kept" and not more and fits(q, k, made):
        return decode(q, k, v, made, hidden, causal, scale)
    if more or _pair_by_pair(q, k, normalize, kind):
        return reference.forward(q, k, v, made, mask, causal, scale, normalize)
    dim = q.shape[-1]
    if hidden is not None:
        q, k, v = _with_channel(q, k, v, hidden, scale)
    out, lse = _kernel(q, k, v, made, causal, scale, normalize, kind)
    if hidden is None:
        return out, lse
    nothing = lse < _far(q, scale) * scale / 2
    out = out[..., :dim].masked_fill(nothing.unsqueeze(-1), 0)
    return out.contiguous(), lse.masked_fill(nothing, float("-inf"))


def _backward(grad_out, grad_lse, q, k, v, out, lse, rules, mask, keys, block, length, causal, scale, normalize, kind):
    if differ(k, v):
        settings = (rules, mask, keys, block, length, causal, scale, normalize, kind)
        wide_grad, wide_q, wide_k, wide_v, wide_out = one_width(grad_out, q, k, v, out)
        grads = _backward(wide_grad, grad_lse, wide_q, wide_k, wide_v, wide_out, lse, *settings)
        return as_wide(grads, (q, k, v))
    made = Rules(block, *rules, length)
    if _more(mask, keys) or _pair_by_pair(q, k, normalize, kind):
        return reference.backward(grad_out, grad_lse, q, k, v, out, lse, made, mask, causal, scale, normalize)
    hidden = _hidden(keys)
    dim = q.shape[-1]
    if hidden is not None:
        q, k, v = _with_channel(q, k, v, hidden, scale)
        grad_out, out = (pad(each, (0, q.shape[-1] - dim)) for each in (grad_out, out))
        nothing = lse.isinf()
        grad_out = grad_out.masked_fill(nothing.unsqueeze(-1), 0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(nothing, 0)
        lse = lse.masked_fill(nothing, 0)
    layout = LAYOUTS.get(made, q.shape[2], k.shape[2], causal, kind)
    given = (grad_out, grad_lse, q, k, v, out, lse, layout.tensors())
    if kind == "block":
        grads = torch.ops.surgery.block_attention_backward(*given, *layout.block, scale)
    else:
        grads = torch.ops.surgery.edge_attention_backward(*given, scale, normalize, causal)
    return tuple(grad[..., :dim].contiguous() for grad in grads) if hidden is not None else tuple(grads)


def _kernel(q, k, v, rules: Rules, causal: bool, scale: float, normalize: str, kind: str) -> tuple[Tensor, Tensor]:
    layout = LAYOUTS.get(rules, q.shape[2], k.shape[2], causal, kind)
    if kind == "block":
        return torch.ops.surgery.block_attention(q, k, v, layout.tensors(), *layout.block, scale)
    return torch.ops.surgery.edge_attention(q, k, v, layout.tensors(), scale, normalize, causal)


def _more(mask: Tensor | None, keys: Tensor | None) -> bool:
    """Whether a mask says more than which keys are padding."""
    return mask is not None and (keys is None or keys.numel() > 0 and int(keys.flatten()[0]) == MORE)


def _pair_by_pair(q: Tensor, k: Tensor, normalize: str, kind: str) -> bool:
    """Whether a layout costs more than it saves, or no kernel knows what is asked for."""
    return q.shape[2] <= FEW and q.shape[2] < k.shape[2] or (normalize == "all" and kind == "block") or not q.shape[2]


def _hidden(keys: Tensor | None) -> Tensor | None:
    """bool [B, Sk] of keys that are padding, None where none is."""
    if keys is None:
        return None
    hidden = keys == HIDE
    return hidden if bool(hidden.any()) else None


def _with_channel(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """One more channel, 1 in every query and in keys what takes hidden ones far below: kernels need no mask for it."""
    more = -(q.shape[-1] + 1) % LANES + 1
    hidden = hidden.expand(k.shape[0], -1)
    low = k.new_zeros(hidden.shape).masked_fill(hidden, _far(q, scale))[:, None, :, None].expand(*k.shape[:3], 1)
    one = q.new_ones(()).expand(*q.shape[:3], 1)
    q, k = (pad(torch.cat((each, channel), -1), (0, more - 1)) for each, channel in ((q, one), (k, low)))
    return q, k, pad(v, (0, more))


def _far(q: Tensor, scale: float) -> float:
    return max(FAR / scale, torch.finfo(q.dtype).min / 2)


def _fake(q, k, v, rules, mask, keys, block, length, causal, scale, normalize, kind):
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
    return out, q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(grad_out, grad_lse, q, k, v, out, lse, rules, *rest):
    return tuple(torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))


def _flops(q, k, v, rules, mask, keys, block, length, causal, scale, normalize, kind) -> int:
    """Two products of D over the pairs in kept blocks; with normalize="all", of q · kᵀ over all seen."""
    return 2 * (q.shape[3] + v.shape[3]) * _pairs(q, k, rules, block, length, causal) + _all(q, k, causal, normalize, 2)


def _flops_backward(
    grad_out, grad_lse, q, k, v, out, lse, rules, mask, keys, block, length, causal, scale, normalize, kind
) -> int:
    return (6 * q.shape[3] + 4 * v.shape[3]) * _pairs(q, k, rules, block, length, causal) + _all(q, k, causal, normalize, 6)


def _all(q: Tensor, k: Tensor, causal: bool, normalize: str, products: int) -> int:
    return products * q.numel() * k.shape[2] // (2 if causal else 1) * (normalize == "all")


def _pairs(q: Tensor, k: Tensor, rules: list[Tensor], block: int, length: int, causal: bool) -> int:
    """Over all heads and the batch; all pairs where the rules' numbers are not there to be read."""
    if any(tensor.is_meta or type(tensor) is not Tensor and not hasattr(tensor, "numpy") for tensor in rules):
        return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    table = Rules(block, *rules, length).mask(q.shape[2], k.shape[2], causal)
    return q.shape[0] * int(table.sum())


def _setup(ctx, inputs, output) -> None:
    q, k, v, rules, mask, keys, *ctx.rest = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, mask, keys, *rules)


def _gradients(ctx, grad_out, grad_lse):
    q, k, v, out, lse, mask, keys, *rules = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    given = (grad_out, grad_lse, q, k, v, out, lse, rules, mask, keys)
    grads = torch.ops.surgery.pattern_attention_backward(*given, *ctx.rest)
    return *grads, [None] * len(rules), *[None] * 8


REST = "int block, int length, bool causal, float scale, str normalize, str kind"
operator(
    "pattern_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"Tensor[] rules, Tensor? mask, Tensor? keys, {REST}) -> (Tensor, Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
operator(
    "pattern_attention(Tensor q, Tensor k, Tensor v, Tensor[] rules, Tensor? mask, Tensor? keys, "
    f"{REST}) -> (Tensor out, Tensor lse)",
    cpu=_forward,
    cuda=_forward,
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
