"""Attention over the highest scores of each query."""

import operator
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.attention_form import AttentionForm, forms_of, lowest
from surgery.anatomy.graphs import aten, value
from surgery.anatomy.site import Site
from surgery.passes.keep_edges import node_of
from surgery.passes.weights import add_tensor


@dataclass(frozen=True, eq=False)
class Cheap:
    """What cheap scores are made of: the names of queries [B, H, S, D] and keys [B, Hkv, S, D] in the graph, and their
    projections to few dimensions, [H, D, r] both; scores are their products."""

    query: str
    key: str
    of_queries: Tensor
    of_keys: Tensor


@dataclass(frozen=True, eq=False)
class KeepTop:
    """before  A = softmax(s), written out      after  A over the ceil(share · n) highest of the n keys that a query sees

    normalize="all": the softmax is over all n, and the others are left out behind it. A score equal to the last one kept
    is kept too. `by_rank` finds the same keys in another way, by counting the scores above each: the slow truth.
    """

    clause: str
    place: str
    site: Site
    call: str
    share: Fraction
    normalize: str
    cheap: Cheap | None = None
    by_rank: bool = False
    name: str = "keep-top"

    def requires(self, graph_module: GraphModule) -> str | None:
        form = self._form(graph_module)
        return None if form is not None and not form.fused else f"`{self.call}` is not written out"

    def run(self, graph_module: GraphModule) -> None:
        form, graph = self._form(graph_module), graph_module.graph
        softmax, logits = form.softmax, form.logits
        with graph.inserting_before(softmax):
            seen = graph.call_function(aten.gt.Scalar, (logits, lowest(value(logits).dtype) / 2))
            ranked = self._ranked(graph_module, form, seen)
            counts = graph.call_function(aten.sum.dim_IntList, (seen, [-1], True))
            most = graph.call_function(aten.mul.Tensor, (counts, self.share.numerator))
            most = graph.call_function(aten.add.Tensor, (most, self.share.denominator - 1))
            most = graph.call_function(aten.floor_divide.default, (most, self.share.denominator))
            most = graph.call_function(aten.clamp_min.default, (most, 1))
            kept = (_by_rank if self.by_rank else _by_threshold)(graph, ranked, most, len(value(logits).shape))
            kept = graph.call_function(aten.logical_and.default, (kept, seen))
            if self.normalize == "kept":
                fewer = graph.call_function(aten.where.ScalarOther, (kept, logits, lowest(value(logits).dtype)))
                softmax.replace_input_with(logits, fewer)
        with graph.inserting_after(softmax):
            weights = graph.call_function(aten.where.ScalarOther, (kept, softmax, 0.0))
        softmax.replace_all_uses_with(weights, delete_user_cb=lambda user: user is not weights)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _form(self, graph_module: GraphModule) -> AttentionForm | None:
        forms = forms_of(graph_module, self.site)
        return next((form for form in forms if node_of(form).name == self.call and isinstance(form, AttentionForm)), None)

    def _ranked(self, graph_module: GraphModule, form: AttentionForm, seen: Node) -> Node:
        """What keys are ranked by; hidden keys come last."""
        if self.cheap is None:
            return form.logits
        graph = graph_module.graph
        there = {node.name: node for node in graph.nodes}
        query, key = there[self.cheap.query], there[self.cheap.key]
        groups = self.cheap.of_queries.shape[0] // value(key).shape[-3]
        if groups > 1:
            key = graph.call_function(aten.repeat_interleave.self_int, (key, groups, -3))
        small, like = [], value(query)
        for node, matrix, name in ((query, self.cheap.of_queries, "queries"), (key, self.cheap.of_keys, "keys")):
            stored = matrix.to(like.device, like.dtype)
            target = add_tensor(graph_module, f"{self.site.name}.cheap_{name}", stored, parameter=False)
            small.append(graph.call_function(aten.matmul.default, (node, graph.get_attr(target))))
        turned = graph.call_function(aten.transpose.int, (small[1], -2, -1))
        scores = graph.call_function(aten.matmul.default, (small[0], turned))
        scores = graph.call_function(aten.to.dtype, (scores, value(form.logits).dtype))
        return graph.call_function(aten.where.ScalarOther, (seen, scores, lowest(value(form.logits).dtype)))


def _by_threshold(graph: Graph, ranked: Node, most: Node, rank: int) -> Node:
    order = graph.call_function(aten.argsort.default, (ranked, -1, True))
    falling = graph.call_function(aten.gather.default, (ranked, -1, order))
    place = graph.call_function(aten.sub.Tensor, (most, 1))
    least = graph.call_function(aten.gather.default, (falling, -1, place))
    return graph.call_function(aten.ge.Tensor, (ranked, least))


def _by_rank(graph: Graph, ranked: Node, most: Node, rank: int) -> Node:
    """Kept iff fewer scores are above it than are kept."""
    rising = graph.call_function(aten.sort.default, (ranked, -1, False))
    values = graph.call_function(operator.getitem, (rising, 0))
    solid, held = (graph.call_function(aten.contiguous.default, (node,)) for node in (ranked, values))
    below = graph.call_function(aten.searchsorted.Tensor, (held, solid), {"right": True})
    # size - below < most, as most + below > size
    every = graph.call_function(aten.sym_size.int, (solid, rank - 1))
    reached = graph.call_function(aten.add.Tensor, (most, below))
    return graph.call_function(aten.gt.Scalar, (reached, every))
