"""Attention: scaled_dot_product_attention, or softmax(Q Kᵀ) V written out."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import (
    aten,
    attribute,
    calls,
    common_path,
    input_of,
    is_layer,
    is_op,
    owner,
    reads,
    shape,
    tensor_ancestors,
    tensor_inputs,
    width,
    written,
)
from surgery.anatomy.site import Site
from surgery.anatomy.sites.heads import Heads, count_heads, operands_of

PRODUCTS = (aten.matmul, aten.bmm, aten.baddbmm, aten.einsum)
TRIANGLES = (aten.tril, aten.triu)
SPARSE = {"surgery::gated_attention": 7, "surgery::pattern_attention": 8}
"""Operators of sparse attention, which take queries, keys and values first: the argument that says they are causal."""
COMPARISONS = (aten.le, aten.lt, aten.ge, aten.gt)


@dataclass(frozen=True)
class Attention(Site):
    """`heads` query heads sharing `kv_heads` keys and values of `head_dim`; `projections` are the linears of q, k, v
    (one when fused) and of the output, last."""

    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    causal: bool = False
    projections: tuple[Node, ...] = field(default=(), repr=False, compare=False)

    @property
    def linears(self) -> tuple[Node, ...]:
        return self.projections

    def describe(self) -> str:
        grouped = f", {self.kv_heads} KV heads" if self.kv_heads != self.heads else ""
        return f"{self.heads} heads{grouped} × {self.head_dim}{', causal' if self.causal else ''}"


def find_attention(graph_module: GraphModule) -> Iterator[Attention]:
    for node in calls(graph_module, aten.scaled_dot_product_attention):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        flagged = bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))
        yield _site(node, node, node.args[:3], flagged or _is_causal(graph_module, mask))
    for node in graph_module.graph.nodes:
        causal = SPARSE.get(getattr(getattr(node.target, "_schema", None), "name", ""))
        out = next((user for user in node.users if user.args[1:] == (0,)), None) if causal is not None else None
        if out is not None:
            yield _site(out, node, node.args[:3], bool(node.args[causal]))
    for node in calls(graph_module, aten.softmax, aten._softmax):
        parts = _explicit(node)
        if parts:
            scores, product = parts
            behind = [source for source in operands_of(product) if node not in tensor_ancestors(source)]
            if not behind:
                continue
            mask_chain = _between(node, scores)
            causal = any(_is_causal(graph_module, source) for link in mask_chain for source in link.all_input_nodes)
            yield _site(product, scores, (*operands_of(scores), behind[0]), causal)


def _site(node: Node, scores: Node, operands: tuple[Node, ...], causal: bool) -> Attention:
    """`node` makes the heads' outputs; `scores` multiplies queries with keys; `operands` are query, key and value."""
    inputs = [linear for operand in operands for linear in _linears_behind(operand)]
    output = _linear_ahead(node)
    projections = tuple(dict.fromkeys([*inputs, *([output] if output else [])]))
    found = common_path([owner(linear) for linear in projections]) if projections else ""
    counted: Heads = count_heads(scores, operands, _joined(output))
    return Attention(
        kind="attention",
        path=found or owner(node),
        nodes=(node,),
        heads=counted.heads,
        kv_heads=counted.kv_heads,
        head_dim=counted.head_dim,
        causal=causal,
        projections=projections,
    )


def _joined(output: Node | None) -> int | None:
    """How many values of all heads together the joining layer reads per token."""
    return None if output is None else width(input_of(output))


def _linears_behind(node: Node) -> list[Node]:
    """The nearest linears an operand is computed from."""
    found, seen, todo = [], set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_layer(current):
            found.append(current)
        elif not _is_joint(current):
            todo.extend(source for source in current.all_input_nodes if source.op == "call_function")
    return sorted(found)  # nodes compare by their place in the graph


def _is_joint(node: Node) -> bool:
    """Whether an einsum multiplies with a stored tensor: a projection, though none of a layer."""
    return is_op(node, aten.einsum) and any(operand.op == "get_attr" for operand in operands_of(node))


def _linear_ahead(node: Node) -> Node | None:
    """The linear that the heads' outputs are joined by."""
    todo, seen = [node], set()
    while todo and len(seen) < 24:
        current = todo.pop(0)
        if current in seen:
            continue
        seen.add(current)
        users = [user for user in current.users if shape(user)]
        linear = next((user for user in users if reads(user, current)), None)
        if linear:
            return linear
        todo.extend(user for user in users if not is_op(user, *PRODUCTS, aten.add, aten.add_))
    return None


def _explicit(softmax: Node) -> tuple[Node, Node] | None:
    """The scores product and the value product around a softmax, when both are there."""
    product = _product_ahead(softmax)
    scores = _product_behind(softmax)
    return (scores, product) if product and scores else None


def _product_ahead(node: Node) -> Node | None:
    for _ in range(6):
        following = [user for user in node.users if shape(user)]
        if not following:
            return None
        product = next((user for user in following if is_op(user, *PRODUCTS)), None)
        if product:
            return product
        node = following[0]
    return None


def _product_behind(node: Node) -> Node | None:
    seen, todo = set(), [node]
    while todo:
        current = todo.pop(0)
        if current in seen or len(seen) > 40:
            continue
        seen.add(current)
        if is_op(current, *PRODUCTS) and (shape(current) or ()) and current is not node:
            return current
        todo.extend(source for source in tensor_inputs(current) if source.op == "call_function")
    return None


def _between(node: Node, stop: Node) -> list[Node]:
    chain, current = [], node
    while current is not stop and len(chain) < 20:
        chain.append(current)
        step = [source for source in tensor_inputs(current) if stop in tensor_ancestors(source)]
        if not step:
            break
        current = step[0]
    return chain


def _is_causal(graph_module: GraphModule, mask) -> bool:
    """Whether a mask is made by comparing positions, or is a stored lower triangle."""
    if not isinstance(mask, Node):
        return False
    for node in tensor_ancestors(mask):
        if is_op(node, *TRIANGLES) or is_op(node, *COMPARISONS) and _compares_positions(node):
            return True
        if node.op == "get_attr" and _is_triangle(attribute(graph_module, node.target)):
            return True
    return False


def _compares_positions(node: Node) -> bool:
    """Two broadcast operands, as in `query_position[:, None] >= key_position[None, :]`."""
    operands = tensor_inputs(node)
    return len(operands) == 2 and all(written(operand) != written(node) for operand in operands)


def _is_triangle(table: torch.Tensor) -> bool:
    if table.is_meta or table.dim() < 2 or table.shape[-1] != table.shape[-2] or table.shape[-1] < 2:
        return False
    square = table.reshape(-1, *table.shape[-2:])[0]
    kept = square.bool() if square.dtype in (torch.bool, torch.uint8) else square > -1
    return bool(torch.equal(kept, torch.ones_like(kept).tril())) and not bool(kept.all())
