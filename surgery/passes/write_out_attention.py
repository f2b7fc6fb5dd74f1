"""Attention that one call makes, as plain operators: what acts on single edges finds them there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.attention_form import AttentionForm, fused_form, lowest
from surgery.anatomy.graphs import aten, is_op, shape, value, written

MOVES = (aten.transpose, aten.permute, aten.movedim, aten.swapaxes)


@dataclass(frozen=True, eq=False)
class WriteOutAttention:
    """before  scaled_dot_product_attention(q, k, v, mask)      after  s = scale · q kᵀ, masked; A = softmax(s); A v

    `calls` are names of such calls. As in the call, scores and softmax are computed in float32 at least, and a query
    that sees no key gets 0. The call's node becomes the last product, so that its name is still the site's.
    """

    clause: str
    place: str
    calls: tuple[str, ...]
    name: str = "write-out-attention"

    def requires(self, graph_module: GraphModule) -> str | None:
        there = {node.name for node in graph_module.graph.nodes if is_op(node, aten.scaled_dot_product_attention)}
        missing = [name for name in self.calls if name not in there]
        return f"`{missing[0]}` is no call of scaled_dot_product_attention" if missing else None

    def run(self, graph_module: GraphModule) -> None:
        triangles: dict[tuple[str, ...], Node] = {}
        for call in [node for node in graph_module.graph.nodes if node.name in self.calls]:
            write_out(graph_module.graph, fused_form(call, call.name), triangles)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None


def write_out(graph: Graph, form: AttentionForm, triangles: dict[tuple[str, ...], Node] | None = None) -> Node:
    """Put plain operators in place of a call; returns the softmax. Calls of one length share a triangle of `triangles`."""
    call, stored = form.product, value(form.query).dtype
    wide = torch.promote_types(stored, torch.float32)
    with graph.inserting_before(call):
        query, key = (_cast(graph, node, wide) for node in (form.query, form.key))
        values = form.value
        if form.grouped:
            groups = shape(form.query)[-3] // shape(form.key)[-3]
            key, values = (graph.call_function(aten.repeat_interleave.self_int, (n, groups, -3)) for n in (key, values))
        turned = graph.call_function(aten.transpose.int, (key, -2, -1))
        scores = graph.call_function(aten.matmul.default, (query, turned))
        scores = graph.call_function(aten.mul.Tensor, (scores, form.scale))
        logits, seen = _masked(graph, form, scores, wide, {} if triangles is None else triangles)
        weights = softmax = graph.call_function(aten.softmax.int, (logits, -1))
        if seen is not None:
            weights = graph.call_function(aten.where.ScalarOther, (seen, weights, 0.0))
        weights = _cast(graph, weights, wide, stored)
    call.target, call.args, call.kwargs = aten.matmul.default, (weights, values), {}
    _reshape_behind(call)
    return softmax


def _masked(
    graph: Graph, form: AttentionForm, scores: Node, wide: torch.dtype, triangles: dict[tuple[str, ...], Node]
) -> tuple[Node, Node | None]:
    """What the softmax takes, and who is seen, where a query may see nobody."""
    if form.causal:
        triangle = _triangle(graph, form, triangles)
        return graph.call_function(aten.where.ScalarOther, (triangle, scores, lowest(wide))), None
    if form.mask is None:
        return scores, None
    if value(form.mask).dtype == torch.bool:
        return graph.call_function(aten.where.ScalarOther, (form.mask, scores, lowest(wide))), form.mask
    added = graph.call_function(aten.add.Tensor, (scores, form.mask))
    seen = graph.call_function(aten.gt.Scalar, (added, float("-inf")))
    return graph.call_function(aten.clamp_min.default, (added, lowest(wide))), seen


def _triangle(graph: Graph, form: AttentionForm, triangles: dict[tuple[str, ...], Node]) -> Node:
    """bool [Sq, Sk], True where a key is not behind its query, counted from the first of both."""
    lengths = (written(form.query)[-2], written(form.key)[-2])
    if lengths not in triangles:
        device = value(form.query).device
        counts = []
        for operand in (form.query, form.key):
            size = shape(operand)[-2]
            size = size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (operand, -2))
            counts.append(graph.call_function(aten.arange.default, (size,), {"device": device}))
        rows = graph.call_function(aten.unsqueeze.default, (counts[0], 1))
        triangles[lengths] = graph.call_function(aten.le.Tensor, (counts[1], rows))
    return triangles[lengths]


def _cast(graph: Graph, node: Node, dtype: torch.dtype, stored: torch.dtype | None = None) -> Node:
    """In `dtype`; with `stored`, back from it."""
    if stored is None:
        return node if value(node).dtype == dtype else graph.call_function(aten.to.dtype, (node, dtype))
    return node if stored == dtype else graph.call_function(aten.to.dtype, (node, stored))


def _reshape_behind(product: Node) -> None:
    """The call laid its outputs out token by token, so that heads could be joined by a view."""
    todo: Sequence[Node] = [product]
    while todo:
        users = [user for node in todo for user in node.users]
        for user in users:
            if is_op(user, aten.view):
                user.target = aten.reshape.default
        todo = [user for user in users if is_op(user, *MOVES)]
