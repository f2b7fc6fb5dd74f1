"""Edges of attention that are switched off where a score does not reach a threshold: the form that is kept and run."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.attention_form import AttentionForm, fused_form, softmax_behind
from surgery.anatomy.graphs import aten, attribute, is_op, value
from surgery.passes.weights import add_tensor
from surgery.passes.write_out_attention import write_out

TINY = 1e-30
"""Of a query that keeps no edge all weights are 0, and so is what stands in the place of their sum."""
LEAVES = {"learned": "gate_bias", "magnitude": "gate_threshold", "random": "gate_share"}
"""What a gate's numbers are called below its path."""
LOWERED = "surgery::gated_attention"
MARK = "gate"
"""In the meta of where(kept, weights, 0): the path of its gate."""


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of one site: `calls` are the names of its calls (several where blocks share a layer), `heads` the sizes
    of its axes of heads, `numbers` [H] what `by` says:

    learned    a bias b: an edge is kept where its logit + b > 0
    magnitude  a threshold t: where its attention weight > t
    random     a share p: where a number drawn for (`seed`, head, query, key) < p
    """

    path: str
    calls: tuple[str, ...]
    heads: tuple[int, ...]
    numbers: Tensor
    by: str = "learned"
    lowered: bool = False
    seed: int = 0

    @property
    def tensor(self) -> str:
        """The name its numbers are kept under."""
        leaf = LEAVES[self.by]
        return f"{self.path}.{leaf}" if self.path else leaf


@dataclass(frozen=True, eq=False)
class GateEdges:
    """before  A = softmax(s), out = A v      after  out = (A · g) v with g in {0, 1}, deterministic

    With normalize="kept" A · g is divided by its sum; a query that keeps no edge gives 0, as it does with "all". A
    lowered gate is one call of surgery::gated_attention, which is learned, of all keys, and takes no mask.
    """

    clause: str
    place: str
    gates: tuple[Gate, ...]
    normalize: str = "all"
    name: str = "gate-edges"

    def requires(self, graph_module: GraphModule) -> str | None:
        there = {node.name for node in graph_module.graph.nodes}
        missing = [call for gate in self.gates for call in gate.calls if call not in there]
        return f"there is no node `{missing[0]}`" if missing else None

    def run(self, graph_module: GraphModule) -> None:
        there = {node.name: node for node in graph_module.graph.nodes}
        triangles: dict[tuple[str, ...], Node] = {}
        for gate in self.gates:
            name = add_tensor(graph_module, gate.tensor, gate.numbers)
            gate = replace(gate, numbers=attribute(graph_module, name))
            for call in gate.calls:
                node = there[call]
                if gate.lowered:
                    lower(graph_module.graph, fused_form(node, gate.path, gate.heads), name)
                    continue
                if is_op(node, aten.scaled_dot_product_attention):
                    softmax = write_out(graph_module.graph, fused_form(node, gate.path, gate.heads), triangles)
                else:
                    softmax = softmax_behind(node)
                insert(graph_module.graph, softmax, gate, name, self.normalize)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None


def lower(graph: Graph, form: AttentionForm, name: str) -> None:
    """Put surgery::gated_attention in place of a fused call."""
    import surgery.kernels.operators  # noqa: F401  it registers the operator

    with graph.inserting_before(form.product):
        bias = graph.get_attr(name)
        given = (form.query, form.key, form.value, bias, None, None, form.scale, form.causal, "hard", 1.0, False)
        made = graph.call_function(torch.ops.surgery.gated_attention.default, given)
    form.product.target, form.product.args, form.product.kwargs = operator.getitem, (made, 0), {}


def insert(graph: Graph, softmax: Node, gate: Gate, name: str, normalize: str) -> None:
    """Gate the weights of an attention that is written out."""
    logits = softmax.args[0]
    users = list(softmax.users)
    after = softmax.next
    with graph.inserting_before(after):
        numbers = graph.call_function(aten.view.default, (graph.get_attr(name), [*gate.heads, 1, 1]))
        kept = KEPT[gate.by](graph, logits, softmax, numbers, gate)
        gated = graph.call_function(aten.where.ScalarOther, (kept, softmax, 0.0))
        gated.meta[MARK] = gate.path
        if normalize == "kept":
            total = graph.call_function(aten.sum.dim_IntList, (gated, [-1], True))
            total = graph.call_function(aten.clamp_min.default, (total, TINY))
            gated = graph.call_function(aten.div.Tensor, (gated, total))
    for user in users:
        user.replace_input_with(softmax, gated)


def _learned(graph: Graph, logits: Node, softmax: Node, numbers: Node, gate: Gate) -> Node:
    """Logits are compared in float32 at least."""
    if _is_short(logits):
        logits = graph.call_function(aten.to.dtype, (logits, torch.float32))
    total = graph.call_function(aten.add.Tensor, (logits, numbers))
    return graph.call_function(aten.gt.Scalar, (total, 0))


def _magnitude(graph: Graph, logits: Node, softmax: Node, numbers: Node, gate: Gate) -> Node:
    return graph.call_function(aten.gt.Tensor, (softmax, numbers))


def _random(graph: Graph, logits: Node, softmax: Node, numbers: Node, gate: Gate) -> Node:
    """Numbers [*heads, Sq, Sk] by a hash of integers, as `kernels/reference/gated_noise.py` draws them."""
    sizes = [graph.call_function(aten.sym_size.int, (logits, axis)) for axis in (-2, -1)]
    options = {"device": gate.numbers.device}
    rows, columns = (graph.call_function(aten.arange.default, (size,), options) for size in sizes)
    heads = graph.call_function(aten.arange.default, (prod(gate.heads),), options)
    heads = graph.call_function(aten.view.default, (heads, [*gate.heads, 1, 1]))
    head = _mix(graph, graph.call_function(aten.bitwise_xor.Scalar, (heads, (gate.seed ^ 0x9E3779B9) & 0xFFFFFFFF)))
    rows = graph.call_function(aten.unsqueeze.default, (rows, -1))
    row = _mix(graph, graph.call_function(aten.bitwise_xor.Tensor, (head, rows)))
    column = _mix(graph, graph.call_function(aten.bitwise_xor.Scalar, (columns, 0x85EBCA6B)))
    bits = _mix(graph, graph.call_function(aten.bitwise_xor.Tensor, (row, column)))
    drawn = graph.call_function(aten.mul.Tensor, (bits, 2.0**-32))
    return graph.call_function(aten.lt.Tensor, (drawn, numbers))


def _mix(graph: Graph, x: Node) -> Node:
    """A bijection of 32-bit words held in int64: lowbias32 of hash-prospector."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
        moved = graph.call_function(aten.__rshift__.Scalar, (x, shift))
        x = graph.call_function(aten.bitwise_xor.Tensor, (x, moved))
        if factor is not None:
            x = graph.call_function(aten.mul.Tensor, (x, factor))
            x = graph.call_function(aten.bitwise_and.Scalar, (x, 0xFFFFFFFF))
    return x


KEPT: dict[str, Callable[[Graph, Node, Node, Node, Gate], Node]] = {
    "learned": _learned,
    "magnitude": _magnitude,
    "random": _random,
}


def _is_short(logits: Node) -> bool:
    """Whether logits have 16 bits; of a node that a pass has just made nothing is known, but those have 32 at least."""
    fake = value(logits)
    return fake is not None and fake.dtype.itemsize < 4
