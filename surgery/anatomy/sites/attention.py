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
    is_layer,
    is_op,
    owner,
    reads,
    shape,
    tensor_ancestors,
    tensor_inputs,
)
from surgery.anatomy.site import Site

PRODUCTS = (aten.matmul, aten.bmm, aten.einsum)
TRIANGLES = (aten.tril, aten.triu)
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

    def describe(self) -> str:
        grouped = f", {self.kv_heads} KV heads" if self.kv_heads != self.heads else ""
        return f"{self.heads} heads{grouped} × {self.head_dim}{', causal' if self.causal else ''}"


def find_attention(graph_module: GraphModule) -> Iterator[Attention]:
    for node in calls(graph_module, aten.scaled_dot_product_attention):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        flagged = bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))
        yield _site(graph_module, node, node.args[0], node.args[1], flagged or _is_causal(graph_module, mask))
    for node in calls(graph_module, aten.softmax, aten._softmax):
        parts = _explicit(node)
        if parts:
            scores, product = parts
            mask_chain = _between(node, scores)
            causal = any(_is_causal(graph_module, source) for link in mask_chain for source in link.all_input_nodes)
            yield _site(graph_module, product, scores.args[0], scores.args[1], causal)


def _site(graph_module: GraphModule, node: Node, query: Node, key: Node, causal: bool) -> Attention:
    heads = _heads(query)
    inputs = [linear for operand in node.all_input_nodes[:3] for linear in _linears_behind(operand)]
    output = _linear_ahead(node)
    projections = tuple(dict.fromkeys([*inputs, *([output] if output else [])]))
    path = common_path([owner(linear) for linear in projections]) if projections else owner(node)
    return Attention(
        kind="attention",
        path=path or owner(node),
        nodes=(node,),
        heads=heads,
        kv_heads=_kv_heads(key, heads),
        head_dim=_head_dim(query),
        causal=causal,
        projections=projections,
    )


def _heads(query: Node) -> int:
    sizes = shape(query) or ()
    return sizes[-3] if len(sizes) >= 4 and isinstance(sizes[-3], int) else 1


def _head_dim(query: Node) -> int:
    sizes = shape(query) or (0,)
    return sizes[-1] if isinstance(sizes[-1], int) else 0


def _kv_heads(key: Node, heads: int) -> int:
    """Heads of the key before it was repeated for its group of queries."""
    node, best = key, _heads(key)
    while True:
        sizes = shape(node) or ()
        if is_op(node, aten.expand) and len(sizes) == 5 and isinstance(sizes[-4], int):
            return sizes[-4]
        if len(sizes) == 4 and isinstance(sizes[1], int) and heads % sizes[1] == 0:
            best = min(best, sizes[1]) if is_op(node, aten.repeat_interleave) or sizes[-1] == _head_dim(key) else best
        step = tensor_inputs(node)
        moves = (aten.view, aten.reshape, aten.expand, aten.unsqueeze, aten.clone, aten.contiguous, aten.slice)
        if len(step) != 1 or not is_op(
            node, *moves, aten.transpose, aten.repeat_interleave, aten.index_select, aten.permute
        ):
            return best
        if is_op(node, aten.repeat_interleave):
            return _heads(step[0])
        node = step[0]


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
        else:
            todo.extend(source for source in current.all_input_nodes if source.op == "call_function")
    return sorted(found)  # nodes compare by their place in the graph


def _linear_ahead(node: Node) -> Node | None:
    """The linear that the heads' outputs are joined by."""
    current = node
    for _ in range(12):
        users = [user for user in current.users if shape(user)]
        linear = next((user for user in users if reads(user, current)), None)
        if linear or not users:
            return linear
        current = users[0]
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
    return len(operands) == 2 and all((shape(operand) or ()) != (shape(node) or ()) for operand in operands)


def _is_triangle(table: torch.Tensor) -> bool:
    if table.is_meta or table.dim() < 2 or table.shape[-1] != table.shape[-2] or table.shape[-1] < 2:
        return False
    square = table.reshape(-1, *table.shape[-2:])[0]
    kept = square.bool() if square.dtype in (torch.bool, torch.uint8) else square > -1
    return bool(torch.equal(kept, torch.ones_like(kept).tril())) and not bool(kept.all())
