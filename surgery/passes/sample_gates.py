"""Gates as they are trained: sampled, with a gradient straight through, and the share of edges expected beside outputs.

    s_ij    what the softmax takes, masks included; an edge can exist where no mask hides it
    n       logistic noise of a seed; g = [s + b + n > 0], backward as sigmoid(s + b + n)
    share   Σ sigmoid(s + b) / edges that can exist, per head
Without noise (a seed below 0) g = [s + b > 0], and the share is of those.

A trained model's scores can be so large that the slope of sigmoid(s + b) is nothing, and such edges would stay however
little they do. While gates are sampled the share's gradient is therefore that of
    Σ sigmoid(s + b) + sigmoid((s + b) / τ)        τ the standard deviation of a head's scores, 1 at least
and its value stays what it is. The second sum is taken over at most `PROBED` queries, so that it needs no memory of
queries × keys.

Source: Draye, Lei, Pan, Posner, Schölkopf, arXiv 2512.05865, and its authors' kernel, hrpan/splash_attention.
"""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from surgery.anatomy.attention_form import fused_form, softmax_behind
from surgery.anatomy.graphs import aten, is_op, value
from surgery.passes.gate_edges import TINY, Gate
from surgery.passes.weights import add_tensor
from surgery.passes.write_out_attention import write_out

PROBED = 64
"""Queries of a row of data whose edges are looked at for a slope that does not vanish."""
HIDDEN = -5000.0
"""Below it stand masks (-10000 and lower), above it the scores of any trained model."""


@dataclass(frozen=True, eq=False)
class SampleGates:
    """before  outputs      after  (outputs, penalty): penalty is the mean share over sites and heads, not below `floor`

    The graph then calls functions of this file: it is for training, and never kept.
    """

    clause: str
    place: str
    gates: tuple[Gate, ...]
    normalize: str = "all"
    floor: float = 0.0
    name: str = "sample-gates"

    def requires(self, graph_module: GraphModule) -> str | None:
        return None

    def run(self, graph_module: GraphModule) -> None:
        there = {node.name: node for node in graph_module.graph.nodes}
        shares = []
        for gate in self.gates:
            tensors = add_tensor(graph_module, gate.tensor, gate.numbers), add_tensor(
                graph_module, seed_name(gate), torch.tensor(-1), parameter=False, home=False
            )
            shares += [self._sample(graph_module, there[call], gate, tensors) for call in gate.calls]
        _add_penalty(graph_module, shares, self.floor)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _sample(self, graph_module: GraphModule, call: Node, gate: Gate, tensors: tuple[str, str]) -> Node:
        """Put a site's training form in place; returns its shares."""
        graph = graph_module.graph
        if is_op(call, aten.scaled_dot_product_attention):
            form = fused_form(call, gate.path, gate.heads)
            if self.normalize == "all" and len(value(form.query).shape) == 4:
                with graph.inserting_before(call):
                    given = (form.query, form.key, form.value, form.mask, *map(graph.get_attr, tensors))
                    made = graph.call_function(attend, (*given, form.scale, form.causal))
                    share = graph.call_function(operator.getitem, (made, 1))
                call.target, call.args, call.kwargs = operator.getitem, (made, 0), {}
                return share
            softmax = write_out(graph, form)
        else:
            softmax = softmax_behind(call)
        users = list(softmax.users)
        with graph.inserting_before(softmax.next):
            given = (softmax.args[0], softmax, *map(graph.get_attr, tensors))
            made = graph.call_function(gated, (*given, gate.heads, self.normalize))
            weights, share = (graph.call_function(operator.getitem, (made, place)) for place in (0, 1))
        for user in users:
            user.replace_input_with(softmax, weights)
        return share


def seed_name(gate: Gate) -> str:
    """The buffer that a gate's noise is drawn by; below 0 there is none. On the CPU, where reading it waits for nothing."""
    return f"{gate.path}.gate_seed" if gate.path else "gate_seed"


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor, seed: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Sq, D] under gates and shares [B, H].

    Without memory of queries × keys where the mask, if there is one, is what is causal and what pads keys alone.
    """
    k, v = k.type_as(q), v.type_as(q)
    known = as_padding(mask) if mask is not None else (causal, None)
    square = q.shape[2] == k.shape[2]
    if known is None or (known[0] and not square):
        return _attend_written_out(q, k, v, mask, bias, seed, scale, causal)
    from surgery.kernels.operators import gated_attention

    causal, key_mask = known
    sampled = _is_sampled(seed)
    given = {"scale": scale, "causal": causal, "key_mask": key_mask}
    if sampled:
        made = gated_attention(q, k, v, bias, gates="sampled", seed=seed.to(q.device), **given)
        share = made.expected / _possible(q, k, causal, key_mask)
        return made.out, share + _pull(*_probed(q, k, seed, scale, causal, key_mask), bias.view(-1, 1, 1))
    made = gated_attention(q, k, v, bias, gates="hard", **given)
    return made.out, made.kept.float() / _possible(q, k, causal, key_mask)


def gated(
    logits: Tensor, weights: Tensor, bias: Tensor, seed: Tensor, heads: tuple[int, ...], normalize: str
) -> tuple[Tensor, Tensor]:
    """Weights [.., Sq, Sk] under gates and shares [.., heads]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = logits + bias.view(*heads, 1, 1)
    there = logits > HIDDEN
    possible = there.sum((-2, -1)).clamp_min(1)
    if _is_sampled(seed):
        noisy = z + _noise(z, seed)
        soft = noisy.sigmoid()
        gates = (noisy > 0).to(soft) + soft - soft.detach()
        share = (z.sigmoid() * there).sum((-2, -1)) / possible
        share = share + _pull(logits, there, bias.view(*heads, 1, 1))
    else:
        gates = (z > 0).to(z)
        share = ((z > 0) & there).sum((-2, -1)) / possible
    kept = weights * (gates * there).to(weights.dtype)
    if normalize == "kept":
        kept = kept / kept.sum(-1, keepdim=True).clamp_min(TINY)
    return kept, share


def _pull(logits: Tensor, there: Tensor, bias: Tensor) -> Tensor:
    """0 per head [B, *heads], with the gradient of the share of edges whose gates are seen from afar."""
    axes = (0, -2, -1)
    held = logits.detach().masked_fill(~there, 0.0)
    count = there.sum(axes, keepdim=True).clamp_min(1)
    away = (held - held.sum(axes, keepdim=True) / count).square().masked_fill(~there, 0.0)
    spread = (away.sum(axes, keepdim=True) / count).sqrt().clamp_min(1.0)
    open_ = (((logits + bias) / spread).sigmoid() * there).sum((-2, -1)) / there.sum((-2, -1)).clamp_min(1)
    return open_ - open_.detach()


def _probed(
    q: Tensor, k: Tensor, seed: Tensor, scale: float, causal: bool, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores [B, H, P, Sk] of some queries, other ones for each seed, and which of their edges can exist."""
    length = q.shape[2]
    rows = torch.arange(length, device=q.device)[:PROBED]
    if not isinstance(q, FakeTensor):
        generator = torch.Generator(q.device).manual_seed(int(seed))
        rows = torch.randperm(length, generator=generator, device=q.device)[:PROBED]
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = (q[:, :, rows] @ keys.transpose(-2, -1)).float() * scale
    there = torch.ones_like(logits, dtype=torch.bool)
    if causal:
        there = there & (torch.arange(k.shape[2], device=q.device) <= rows[:, None])
    return logits, there if key_mask is None else there & key_mask[:, None, None]


def mean_share(shares: list[Tensor], floor: float) -> Tensor:
    """The mean over sites of their means; below `floor` nothing draws it further down."""
    return torch.stack([share.float().mean() for share in shares]).mean().clamp_min(floor)


def as_padding(mask: Tensor) -> tuple[bool, Tensor | None] | None:
    """(causal, keys seen [B, Sk]) of a bool mask [B or 1, 1, Sq, Sk] that is no more than that; None for any other."""
    mask = mask[(None,) * (4 - mask.dim())]
    if isinstance(mask, FakeTensor):
        return None  # while shapes are computed there are no values to ask
    if mask.dtype != torch.bool or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
        return None
    keys, length = mask[:, 0, -1], mask.shape[-1]
    whole = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    for causal in (True, False):
        if torch.equal(mask, (whole.tril() if causal else whole) & keys[:, None, None]):
            return causal, None if bool(keys.all()) else keys
    return None


def _possible(q: Tensor, k: Tensor, causal: bool, key_mask: Tensor | None) -> Tensor:
    """How many edges of a head can exist: [] or [B, 1]."""
    queries, keys = q.shape[2], k.shape[2]
    reach = torch.arange(queries, 0, -1, device=q.device) if causal else torch.full((keys,), queries, device=q.device)
    if key_mask is None:
        return reach.sum()
    return (key_mask * reach).sum(-1, keepdim=True).clamp_min(1)


def _attend_written_out(q, k, v, mask, bias, seed, scale, causal) -> tuple[Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    lowest = torch.finfo(logits.dtype).min
    if causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        logits = logits.masked_fill(~seen, lowest)
    elif mask is not None:
        logits = logits.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (logits + mask).clamp_min(lowest)
    weights, share = gated(logits, logits.softmax(-1), bias, seed, (q.shape[1],), "all")
    return weights.to(v.dtype) @ v, share


def _noise(z: Tensor, seed: Tensor) -> Tensor:
    """Logistic, the same for the same seed."""
    if isinstance(z, FakeTensor):
        return torch.zeros_like(z)
    generator = torch.Generator(z.device).manual_seed(int(seed))
    return torch.rand(z.shape, generator=generator, device=z.device).clamp(1e-7, 1 - 1e-7).logit()


def _is_sampled(seed: Tensor) -> bool:
    return isinstance(seed, FakeTensor) or int(seed) >= 0


def _add_penalty(graph_module: GraphModule, shares: list[Node], floor: float) -> None:
    graph = graph_module.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(output):
        penalty = graph.call_function(mean_share, (shares, floor))
    info = graph._codegen.pytree_info
    output.args = ((*pytree.tree_leaves(output.args[0]), penalty),)
    outputs = pytree.TreeSpec(tuple, None, [info.out_spec, pytree.tree_structure(0)])
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(info.orig_args, info.in_spec, outputs)))
