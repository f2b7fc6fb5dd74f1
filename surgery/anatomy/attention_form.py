"""How an attention site is written: fused into one call, or as scores, softmax and product; where each part is."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, is_op, shape, tensor_ancestors, tensor_inputs, value, written
from surgery.anatomy.site import Site

PRODUCTS = (aten.matmul, aten.bmm, aten.baddbmm, aten.einsum)
SOFTMAXES = (aten.softmax, aten._softmax)


@dataclass(frozen=True, eq=False)
class AttentionForm:
    """One call of an attention site in a graph.

    product   makes the heads' outputs [.., Sq, D]; the whole call where it is fused
    softmax   None where it is fused; `logits` [.., Sq, Sk], what it takes, are the scores with mask, bias and softcap
    value     [.., Sk, D]; `query` [.., Sq, D] and `key` [.., Sk, D] are known where the call is fused
    heads     sizes of the axes before Sq that count heads, mostly one; a vector of all heads is viewed as (*heads, 1, 1)
    mask      bool (True: seen) or added to the scores, broadcast to them; `causal`, `scale`, `grouped` (keys of fewer
              heads than queries) as in scaled_dot_product_attention
    """

    site: str
    product: Node
    softmax: Node | None
    value: Node
    heads: tuple[int, ...]
    query: Node | None = None
    key: Node | None = None
    mask: Node | None = None
    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    @property
    def fused(self) -> bool:
        return self.softmax is None

    @property
    def logits(self) -> Node | None:
        return None if self.softmax is None else self.softmax.args[0]

    @property
    def count(self) -> int:
        """Heads of queries."""
        return prod(self.heads)

    @property
    def square(self) -> bool:
        """Whether queries and keys are of one length, so that a lower triangle is the same from both ends."""
        return self.key is not None and written(self.query)[-2] == written(self.key)[-2]


@dataclass(frozen=True, eq=False)
class Obstacle:
    """Why the parts of a site cannot be told apart, and at which node."""

    site: str
    node: Node
    reason: str


def forms_of(graph_module: GraphModule, site: Site) -> tuple[AttentionForm | Obstacle, ...]:
    """One for each call of the site that is in the graph, in order; none where its layer is gone.

    The graph may be a rewritten copy of the one the site was found in: nodes keep their names.
    """
    there = {node.name: node for node in graph_module.graph.nodes}
    return tuple(_form(site, there[node.name]) for node in site.nodes if node.name in there)


def _form(site: Site, product: Node) -> AttentionForm | Obstacle:
    if is_op(product, aten.scaled_dot_product_attention):
        return _fused(site, product)
    softmax = softmax_behind(product)
    if softmax is None:
        return Obstacle(site.name, product, "no softmax is found behind it")
    rank = len(shape(softmax) or ())
    if softmax.args[1] not in (-1, rank - 1):
        return Obstacle(site.name, softmax, "its softmax is not over the last axis")
    heads = _head_axes(shape(softmax), site)
    if heads is None:
        return Obstacle(site.name, softmax, "its heads do not stand on axes of their own")
    weights, *values = _operands(product)
    if len(values) != 1 or softmax not in tensor_ancestors(weights) or softmax in tensor_ancestors(values[0]):
        return Obstacle(site.name, product, "it does not multiply attention with values, in this order")
    return AttentionForm(site.name, product, softmax, values[0], heads)


def fused_form(call: Node, site: str, heads: tuple[int, ...] = ()) -> AttentionForm:
    """The form of a call of scaled_dot_product_attention."""
    query, key, values = call.args[:3]
    scale = call.kwargs.get("scale")
    return AttentionForm(
        site=site,
        product=call,
        softmax=None,
        value=values,
        heads=heads,
        query=query,
        key=key,
        mask=_given(call, 3, "attn_mask"),
        causal=bool(_given(call, 5, "is_causal")),
        scale=float(scale if scale is not None else shape(query)[-1] ** -0.5),
        grouped=bool(call.kwargs.get("enable_gqa", False)) and written(query)[-3] != written(key)[-3],
    )


def _fused(site: Site, call: Node) -> AttentionForm | Obstacle:
    query = call.args[0]
    if _given(call, 4, "dropout_p"):
        return Obstacle(site.name, call, "it drops weights at random")
    if call.kwargs.get("scale") is None and not isinstance(shape(query)[-1], int):
        return Obstacle(site.name, call, "the width of its heads is free")
    heads = _head_axes(shape(query), site)
    if heads is None:
        return Obstacle(site.name, call, "its heads do not stand on axes of their own")
    return fused_form(call, site.name, heads)


def _given(call: Node, place: int, name: str) -> Any:
    return call.args[place] if len(call.args) > place else call.kwargs.get(name)


def _head_axes(sizes: tuple, site: Any) -> tuple[int, ...] | None:
    """Of the axes between batch and queries, those that count heads: as many from the right as it takes."""
    if len(sizes) == 3 and site.heads > 1:
        return None
    found: list[int] = []
    for size in reversed(sizes[1:-2]):
        if not isinstance(size, int):
            break
        found.insert(0, size)
        if prod(found) == site.heads:
            return tuple(found)
    return tuple(found[-1:]) if len(sizes) == 4 else () if len(sizes) == 3 else None


def _operands(product: Node) -> tuple[Node, ...]:
    if is_op(product, aten.einsum):
        return tuple(product.args[1])
    return tuple(product.args[1:3] if is_op(product, aten.baddbmm) else product.args[:2])


def softmax_behind(product: Node) -> Node | None:
    """The softmax whose weights are multiplied with the values, through casts and dropout alone."""
    for operand in _operands(product):
        node, steps = operand, 0
        while isinstance(node, Node) and steps < 8:
            if is_op(node, *SOFTMAXES):
                return node
            sources = [each for each in tensor_inputs(node) if value(each).dtype.is_floating_point]
            sources = sources[:1] if is_op(node, aten.div) else sources  # by their own sum
            if len(sources) != 1 or is_op(node, *PRODUCTS, aten.linear):
                break
            node, steps = sources[0], steps + 1
    return None


def lowest(dtype: torch.dtype) -> float:
    """The finite number that hides an edge."""
    return torch.finfo(dtype).min
