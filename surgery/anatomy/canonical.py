"""One form for one meaning: what models write in several ways is written in one before sites are looked for.

    matmul(x, T(W)), mm(x, T(W))   →   linear(x, W)        for a stored W [M, K], T any way to transpose it

The result is the same number for number: `aten.linear` without a bias is that product. What nothing reads goes, such as
attention weights that are averaged and thrown away: a dead reader would forbid cuts that nothing forbids.
"""

from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, calls, is_op, shape

FLIPS = (aten.t, aten.numpy_T, aten.mT, aten.adjoint, aten.transpose, aten.permute)
PRODUCTS = (aten.matmul, aten.mm)


def canonicalize(graph_module: GraphModule) -> None:
    """Edit a captured graph in place; nodes that were replaced keep owner, shape and line of code."""
    for node in list(calls(graph_module, *PRODUCTS)):
        weight = _transposed(node.args[1])
        if weight is None:
            continue
        source = node.args[0]
        node.target, node.args = aten.linear.default, (source, weight)
    for node in reversed(graph_module.graph.nodes):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph_module.graph.erase_node(node)


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
