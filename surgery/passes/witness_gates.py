"""What proves a gated graph: every site beside its formula in float64, written out in another way.

A score at the threshold, rounded otherwise, is on the other side of it: two right answers then differ by the edge's whole
weight. So no reference of gates can be compared by a tolerance alone. Here the reference takes a site's own numbers where
the formula, computed beside them from the same inputs, allows them:

    |out − truth| ≤ rounding · max |truth| + Σ over undecided edges of A_ij |v_j|
    undecided: |z_ij| ≤ 2 (D + 8) 2⁻²⁴ (scale · |q_i| · |k_j| + |b|), twice the bound of a float32 dot product's error

and the formula's where they are not allowed. If every site is right, the reference is the graph itself, to the bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.attention_form import AttentionForm, fused_form
from surgery.anatomy.graphs import aten, is_op
from surgery.passes.gate_edges import MARK, Gate, GateEdges

UNIT = 2.0**-24
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Of the largest output, as in the proof of whole models."""


@dataclass(frozen=True, eq=False)
class WitnessGates(GateEdges):
    """As GateEdges, and behind each site a choice between its own numbers and the formula's. Never kept."""

    name: str = "witness-gates"

    def run(self, graph_module: GraphModule) -> None:
        there = {node.name: node for node in graph_module.graph.nodes}
        forms = [
            (gate, fused_form(there[call], gate.path, gate.heads))
            for gate in self.gates
            for call in gate.calls
            if is_op(there[call], aten.scaled_dot_product_attention)
        ]
        super().run(graph_module)
        for gate, form in forms:
            _behind_call(graph_module, gate, form, self.normalize)
        fused = {id(gate) for gate, _ in forms}
        gates = {gate.path: gate for gate in self.gates if id(gate) not in fused}
        for node in list(graph_module.graph.nodes):
            if node.meta.get(MARK) in gates:
                _behind_weights(graph_module, gates[node.meta[MARK]], node)


def _behind_call(graph_module: GraphModule, gate: Gate, form: AttentionForm, normalize: str) -> None:
    graph, out = graph_module.graph, form.product
    with graph.inserting_after(out):
        numbers = graph.get_attr(gate.tensor)
    with graph.inserting_after(numbers):
        given = (out, form.query, form.key, form.value, form.mask, numbers, form.scale, form.causal)
        seen = graph.call_function(allowed, (*given, gate.heads, gate.by, gate.seed, normalize))
    out.replace_all_uses_with(seen, delete_user_cb=lambda user: user is not seen)


def _behind_weights(graph_module: GraphModule, gate: Gate, gated: Node) -> None:
    graph, (_, softmax, _) = graph_module.graph, gated.args
    with graph.inserting_after(gated):
        numbers = graph.get_attr(gate.tensor)
    with graph.inserting_after(numbers):
        given = (gated, softmax.args[0], numbers, gate.heads, gate.by, gate.seed)
        seen = graph.call_function(allowed_weights, given)
    gated.replace_all_uses_with(seen, delete_user_cb=lambda user: user is not seen)


def allowed(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    numbers: Tensor,
    scale: float,
    causal: bool,
    heads: tuple[int, ...],
    by: str,
    seed: int,
    normalize: str,
) -> Tensor:
    """`out` [B, H, Sq, D] where the formula allows it, else the formula's numbers."""
    groups = q.shape[-3] // k.shape[-3]
    q, k, v = (each.double() for each in (q, k, v))
    k, v = (each.repeat_interleave(groups, -3) if groups > 1 else each for each in (k, v))
    reach = (q.abs() @ k.abs().transpose(-2, -1)) * scale
    logits, seen = _masked((q @ k.transpose(-2, -1)) * scale, mask, causal)
    weights = torch.where(seen, (logits - logits.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)).exp(), 0.0)
    slack = 2 * (q.shape[-1] + 8) * UNIT * reach
    kept, open_ = _kept(logits, weights, numbers.double().view(*heads, 1, 1), slack, by, seed)
    undecided = open_ & seen
    truth = torch.where(kept, weights, 0.0)
    total = truth.sum(-1, keepdim=True).clamp_min(1e-30)
    truth = (truth / total if normalize == "kept" else truth) @ v
    doubtful = torch.where(undecided, weights, 0.0)
    bound = doubtful @ v.abs()
    if normalize == "kept":
        sure = torch.where(kept & ~undecided, weights, 0.0).sum(-1, keepdim=True).clamp_min(1e-30)
        bound = (bound + truth.abs() * doubtful.sum(-1, keepdim=True)) / sure
    fits = (out.double() - truth).abs() <= bound + ROUNDING[out.dtype] * truth.abs().amax()
    return torch.where(fits, out, truth.to(out.dtype))


def allowed_weights(
    gated: Tensor, logits: Tensor, numbers: Tensor, heads: tuple[int, ...], by: str, seed: int
) -> Tensor:
    """Gated weights [.., Sq, Sk] of an attention whose logits are the model's own, edge by edge."""
    wide = logits.double()
    weights = (wide - wide.logsumexp(-1, keepdim=True)).exp()
    slack = 4 * UNIT * wide.abs()
    kept, undecided = _kept(wide, weights, numbers.double().view(*heads, 1, 1), slack, by, seed)
    truth = torch.where(kept, weights, 0.0)
    rounding = ROUNDING[gated.dtype]
    either = undecided & ((gated.double().abs() <= rounding) | ((gated - weights).abs() <= rounding))
    fits = ((gated.double() - truth).abs() <= rounding) | either
    return torch.where(fits, gated, truth.to(gated.dtype))


def _masked(logits: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
    if causal:
        seen = seen.tril()
    elif mask is not None and mask.dtype == torch.bool:
        seen = mask
    elif mask is not None:
        logits = logits + mask.double()
        seen = logits > float("-inf")
    return logits.masked_fill(~seen, float("-inf")), seen.expand(logits.shape)


def _kept(
    logits: Tensor, weights: Tensor, numbers: Tensor, slack: Tensor, by: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Which edges the formula keeps, and which it could keep or not."""
    if by == "learned":
        z = logits + numbers
        return z > 0, z.abs() <= slack + 4 * UNIT * numbers.abs()
    if by == "magnitude":
        return weights > numbers, (weights - numbers).abs() <= numbers * (2 * slack + 1e-5)
    drawn = _drawn(seed, logits.shape, numbers.shape[:-2], logits.device)
    return drawn < numbers, (drawn - numbers).abs() <= 2 * UNIT


def _drawn(seed: int, sizes: torch.Size, heads: tuple[int, ...], device: torch.device) -> Tensor:
    """In (0, 1), by the hash of `gate_edges`, in whole numbers to the end."""

    def mix(x: Tensor) -> Tensor:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
        return x

    count = [torch.arange(size, device=device) for size in (heads.numel(), *sizes[-2:])]
    head = mix(count[0] ^ ((seed ^ 0x9E3779B9) & 0xFFFFFFFF)).view(*heads, 1, 1)
    bits = mix(mix(head ^ count[1][:, None]) ^ mix(count[2] ^ 0x85EBCA6B))
    return bits.double() * 2.0**-32
