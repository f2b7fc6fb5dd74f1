"""Attention under a fixed pattern: as one operator that skips what is not kept, or as a mask anyone can read."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.attention_form import AttentionForm, Obstacle, forms_of, lowest
from surgery.anatomy.graphs import aten, shape, value, written
from surgery.anatomy.site import Site
from surgery.kernels.layouts.rules import Rules
from surgery.passes.weights import add_tensor

DENSE = "dense"


@dataclass(frozen=True, eq=False)
class KeepEdges:
    """before  out = softmax(s) v      after  the same over edges that rules keep, or (softmax(s) · kept) v: normalize="all"

    form  "block" or "edge": the operator pattern_attention of that kind, where attention is one call; "dense": plain
          operators under a mask made from positions, which with normalize="all" takes an attention that is written out
    """

    clause: str
    place: str
    site: Site
    call: str
    rules: Rules
    normalize: str
    form: str = DENSE
    name: str = "keep-edges"

    def requires(self, graph_module: GraphModule) -> str | None:
        found = self._found(graph_module)
        if isinstance(found, str):
            return found
        if found.fused and self.form == DENSE and self.normalize == "all":
            return f"`{self.call}` is one call: write it out"
        whole = self.form == DENSE or found.fused
        return None if whole else f"`{self.call}` is written out: no operator stands in for it"

    def run(self, graph_module: GraphModule) -> None:
        form = self._found(graph_module)
        if self.form != DENSE:
            return _operator(graph_module, form, self)
        if form.fused:
            return _masked_call(graph_module, form, self)
        _masked_softmax(graph_module, form, self)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _found(self, graph_module: GraphModule) -> AttentionForm | str:
        form = next((form for form in forms_of(graph_module, self.site) if node_of(form).name == self.call), None)
        if form is None:
            return f"`{self.call}` is not in the graph"
        return f"{self.site.name}: {form.reason}" if isinstance(form, Obstacle) else form


@dataclass(frozen=True, eq=False)
class MaskEdges:
    """before  out = softmax(s) v, written out      after  the same under a mask [H, S, S] that is stored whole

    The slow truth for patterns: S is the greatest length it can be compared at.
    """

    clause: str
    place: str
    site: Site
    call: str
    mask: Tensor
    normalize: str
    name: str = "mask-edges"

    def requires(self, graph_module: GraphModule) -> str | None:
        return None

    def run(self, graph_module: GraphModule) -> None:
        form = next(form for form in forms_of(graph_module, self.site) if node_of(form).name == self.call)
        name = add_tensor(graph_module, f"{self.site.name}.edges_kept", self.mask, parameter=False)
        graph = graph_module.graph
        with graph.inserting_before(form.softmax):
            kept = graph.get_attr(name)
            for axis in (-2, -1):
                kept = graph.call_function(aten.slice.Tensor, (kept, axis, 0, size_of(graph, form.logits, axis)))
            _under(graph, form, kept, self.normalize)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None


def node_of(form: AttentionForm | Obstacle) -> Node:
    """The call, or the last product of an attention that is written out."""
    return form.node if isinstance(form, Obstacle) else form.product


def unfit(form: AttentionForm | Obstacle) -> str | None:
    """Why a fixed pattern cannot be laid over a site, or None."""
    if isinstance(form, Obstacle):
        return form.reason
    if form.fused and not form.square:
        return "its queries and keys are of different sequences"
    sizes = written(form.query) if form.fused else written(form.logits)
    if not form.fused and sizes[-1] != sizes[-2]:
        return "its queries and keys are of different sequences"
    return None if len(form.heads) else "its heads do not stand on an axis of their own"


def size_of(graph: Graph, node: Node, axis: int) -> Node | int:
    """A size as a number, or as the node that tells it."""
    size = shape(node)[axis]
    return size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (node, len(shape(node)) + axis))


def _operator(graph_module: GraphModule, form: AttentionForm, step: KeepEdges) -> None:
    """The call's node becomes the operator's output, so that its name is still the site's."""
    import surgery.kernels.operators  # noqa: F401

    graph, call = graph_module.graph, form.product
    rules = step.rules
    with graph.inserting_before(call):
        stored = _stored(graph_module, step, call)
        keys = None
        if form.mask is not None:
            keys = _seen(graph, form.mask, step.site.causal)
        numbers = (rules.block, rules.length, step.site.causal, form.scale, step.normalize, step.form)
        arguments = (form.query, form.key, form.value, stored, form.mask, keys, *numbers)
        made = graph.call_function(torch.ops.surgery.pattern_attention.default, arguments)
    call.target, call.args, call.kwargs = operator.getitem, (made, 0), {}


def _seen(graph: Graph, mask: Node, causal: bool) -> Node:
    """What the mask says, read once for all that share it."""
    target = torch.ops.surgery.seen_keys.default
    found = next((user for user in mask.users if user.target is target and user.args == (mask, causal)), None)
    if found is not None:
        return found
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1] if mask.op == "placeholder" else mask):
        return graph.call_function(target, (mask, causal))


def _stored(graph_module: GraphModule, step: KeepEdges, call: Node) -> list[Node]:
    device = value(call).device
    named = zip(("columns", "distances", "entries"), step.rules.tensors(), strict=True)
    names = [
        add_tensor(graph_module, f"{step.site.name}.edges_{name}", tensor.to(device), parameter=False)
        for name, tensor in named
    ]
    return [graph_module.graph.get_attr(name) for name in names]


def _masked_call(graph_module: GraphModule, form: AttentionForm, step: KeepEdges) -> None:
    """scaled_dot_product_attention under a mask of its own and the pattern's."""
    graph, call = graph_module.graph, form.product
    with graph.inserting_before(call):
        positions, kept = _kept(graph_module, form.query, -2, step, call)
        if form.causal:
            rows = graph.call_function(aten.unsqueeze.default, (positions, 1))
            ahead = graph.call_function(aten.le.Tensor, (positions, rows))
            kept = graph.call_function(aten.logical_and.default, (kept, ahead))
        if form.mask is not None and value(form.mask).dtype == torch.bool:
            kept = graph.call_function(aten.logical_and.default, (form.mask, kept))
        elif form.mask is not None:
            kept = graph.call_function(aten.where.ScalarOther, (kept, form.mask, float("-inf")))
        elif not form.causal:
            kept = graph.call_function(aten.unsqueeze.default, (kept, 0))
    kwargs = {name: given for name, given in call.kwargs.items() if name in ("scale", "enable_gqa")}
    call.args, call.kwargs = (form.query, form.key, form.value, kept, 0.0, False), kwargs


def _masked_softmax(graph_module: GraphModule, form: AttentionForm, step: KeepEdges) -> None:
    graph = graph_module.graph
    with graph.inserting_before(form.softmax):
        _, kept = _kept(graph_module, form.logits, -1, step, form.softmax)
        _under(graph, form, kept, step.normalize)


def _under(graph: Graph, form: AttentionForm, kept: Node, normalize: str) -> None:
    """The softmax over kept keys alone, or over all and then without the others; kept is [H, S, S]."""
    softmax, logits = form.softmax, form.logits
    if len(form.heads) > 1:
        sizes = [size_of(graph, logits, axis) for axis in (-2, -1)]
        kept = graph.call_function(aten.reshape.default, (kept, [*form.heads, *sizes]))
    if normalize == "kept":
        hidden = lowest(value(logits).dtype)
        logits = graph.call_function(aten.where.ScalarOther, (kept, logits, hidden))
        softmax.replace_input_with(form.logits, logits)
    with graph.inserting_after(softmax):
        weights = graph.call_function(aten.where.ScalarOther, (kept, softmax, 0.0))
    softmax.replace_all_uses_with(weights, delete_user_cb=lambda user: user is not weights)


def _kept(graph_module: GraphModule, source: Node, axis: int, step: KeepEdges, like: Node) -> tuple[Node, Node]:
    """Positions [S], and bool [H, S, S] of what the rules keep at them; see `Rules`."""
    graph, rules = graph_module.graph, step.rules
    columns, distances, entries = _stored(graph_module, step, like)

    def call(target, *args, **kwargs):
        return graph.call_function(target, args, kwargs)

    length, device = size_of(graph, source, axis), value(like).device
    positions = call(aten.arange.default, length, device=device)
    place = call(aten.floor_divide.default, positions, rules.block)
    blocks = call(aten.arange.default, _blocks(graph, length, rules.block), device=device)
    row = call(aten.unsqueeze.default, blocks, 1)
    far = rules.distances.shape[1] - 1
    apart = call(aten.clamp.default, call(aten.add.Tensor, call(aten.sub.Tensor, row, blocks), far // 2), 0, far)
    kept = call(aten.index.Tensor, distances, [None, apart])
    if bool(rules.columns.any()):
        held = call(aten.clamp.default, blocks, 0, rules.columns.shape[1] - 1)
        there = call(aten.unsqueeze.default, call(aten.index_select.default, columns, 1, held), 1)
        kept = call(aten.logical_or.default, there, kept)
    if len(rules.entries):
        kept = call(aten.logical_or.default, kept, _single(graph, rules, entries, row, blocks, like))
    wide = call(aten.index_select.default, kept, 2, place)
    return positions, call(aten.index_select.default, wide, 1, place)


def _blocks(graph: Graph, length: Node | int, block: int) -> Node | int:
    """How many blocks a length has."""
    if isinstance(length, int):
        return -(-length // block)
    return graph.call_function(operator.floordiv, (graph.call_function(operator.add, (length, block - 1)), block))


def _single(graph: Graph, rules: Rules, entries: Node, row: Node, blocks: Node, like: Node) -> Node:
    """bool [H, R, R] of single blocks; a longer input finds no row in their table."""

    def call(target, *args, **kwargs):
        return graph.call_function(target, args, kwargs)

    size = -(-rules.length // rules.block)
    empty = call(aten.zeros.default, [rules.heads, size, size], dtype=torch.bool, device=value(like).device)
    numbers = call(aten.to.dtype, entries, torch.int64)
    parts = [call(aten.select.int, numbers, 1, column) for column in range(3)]
    yes = call(aten.ones.default, [], dtype=torch.bool, device=value(like).device)
    table = call(aten.index_put.default, empty, parts, yes)
    return call(aten.index.Tensor, table, [None, row, blocks])
