"""One form for one meaning: what models write in several ways is written in one before sites are looked for.

    matmul(x, T(W)), mm(x, T(W))   →   linear(x, W)        for a stored W [M, K], T any way to transpose it
    relu_(x), add_(x, y), …        →   relu(x), add(x, y)  where x is fresh and nothing reads it afterwards
    view_as(x, y), expand_as(x, y) →   view(x, sizes of y), expand(x, sizes of y)
    multiply(x, y), concat(…), …   →   mul(x, y), cat(…): operators that torch has by two names

The result is the same number for number: `aten.linear` without a bias is that product. What nothing reads goes, such as
attention weights that are averaged and thrown away: a dead reader would forbid cuts that nothing forbids.
"""

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import (
    aliases,
    aten,
    calls,
    is_op,
    is_pointwise_operator,
    shape,
    tensor_inputs,
    value,
    writes,
)

FLIPS = (aten.t, aten.numpy_T, aten.mT, aten.adjoint, aten.transpose, aten.permute)
PRODUCTS = (aten.matmul, aten.mm)
LIKE = {
    aten.view_as: aten.view.default,
    aten.reshape_as: aten.reshape.default,
    aten.expand_as: aten.expand.default,
}
NAMES = (
    "multiply mul, divide div, true_divide div, subtract sub, negative neg, absolute abs, clip clamp, concat cat, "
    "concatenate cat, moveaxis movedim, greater gt, greater_equal ge, less lt, "
    "less_equal le, not_equal ne, special_expit sigmoid, special_erf erf, special_expm1 expm1, special_softmax softmax"
)
SECOND = {getattr(aten, second): getattr(aten, first) for second, first in map(str.split, NAMES.split(","))}
"""Operators by their second name, and by the one that is looked for."""


def canonicalize(graph_module: GraphModule) -> None:
    """Edit a captured graph in place; nodes that were replaced keep owner, shape and line of code."""
    for node in calls(graph_module, *SECOND):
        packet, overload = SECOND[node.target.overloadpacket], node.target._overloadname
        node.target = getattr(packet, overload, node.target)
    for node in list(calls(graph_module, *PRODUCTS)):
        weight = _transposed(node.args[1])
        if weight is None:
            continue
        source = node.args[0]
        node.target, node.args = aten.linear.default, (source, weight)
    for node in list(calls(graph_module, *LIKE)):
        other = node.args[1] if len(node.args) > 1 else node.kwargs["other"]
        with graph_module.graph.inserting_before(node):
            node.args, node.kwargs = (node.args[0], _sizes(other)), {}
        node.target = LIKE[node.target.overloadpacket]
    for node in graph_module.graph.nodes:
        if writes(node):
            node.target = _functional(node) or node.target
    for node in reversed(graph_module.graph.nodes):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph_module.graph.erase_node(node)


def _functional(node: Node) -> OpOverload | None:
    """The operator that gives what one that works in place does, where nobody would see the difference."""
    packet = node.target.overloadpacket
    plain = getattr(aten, packet.__name__.removesuffix("_"), None)
    if plain is None or node.target._overloadname not in plain.overloads():
        return None
    plain, base = getattr(plain, node.target._overloadname), node.args[0] if node.args else None
    fresh = isinstance(base, Node) and base.op == "call_function" and not aliases(base)
    if not fresh or any(user is not node and (user > node or aliases(user)) for user in base.users):
        return None
    kind = value(base).dtype
    kept = all(torch.promote_types(kind, value(each).dtype) == kind for each in tensor_inputs(node))
    return plain if kept and is_pointwise_operator(plain) else None


def _sizes(node: Node) -> list[int | Node]:
    """The shape of a tensor as a graph reads it: a free size where it is read first."""
    sizes = []
    for axis, size in enumerate(shape(node)):
        if isinstance(size, torch.SymInt):
            free = (each for each in node.graph.nodes if isinstance(value(each), torch.SymInt))
            same = (each for each in free if each < node and str(value(each)) == str(size))
            read = next(same, None) or node.graph.call_function(aten.sym_size.int, (node, axis))
            read.meta.setdefault("val", size)
            size = read
        sizes.append(size)
    return sizes


def _transposed(operand: Node) -> Node | None:
    """The stored matrix of which `operand` is the transpose."""
    if not is_op(operand, *FLIPS):
        return None
    weight = operand.args[0]
    sizes = shape(weight) or ()
    if weight.op != "get_attr" or len(sizes) != 2 or shape(operand) != (sizes[1], sizes[0]):
        return None
    moves = is_op(operand, aten.t, aten.numpy_T, aten.mT, aten.adjoint) or _swaps(operand)
    return weight if moves else None


def _swaps(operand: Node) -> bool:
    """Whether a `transpose` or `permute` of two axes exchanges them, which a square shape does not tell."""
    first = operand.args[1]
    axes = first if isinstance(first, list | tuple) else operand.args[1:3]
    ordered = [axis % 2 for axis in axes]
    return ordered == [1, 0] or not isinstance(first, list | tuple) and ordered == [0, 1]
