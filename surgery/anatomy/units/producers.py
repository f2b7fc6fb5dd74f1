"""Where labels begin: a layer's output features, an embedding's columns, a parameter's entries."""

from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node

from surgery.anatomy.graphs import aten, is_op, weight_of, whole_of
from surgery.anatomy.units.walk import Walk, varies

CONVOLUTIONS = (aten.conv1d, aten.conv2d)
PRODUCTS = (aten.matmul, aten.mm)
"""Against a weight [K, M] they are layers."""


def layer_weight(node: Node) -> tuple[Any, int, Any]:
    """(weight, the axis of it that makes output features, bias) of a layer."""
    if is_op(node, aten.addmm):
        return node.args[2], 1, node.args[0]
    if is_op(node, aten.embedding):
        return node.args[0], 1, None
    if is_op(node, *PRODUCTS):
        return node.args[1], 1, None
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return node.args[1], 0, bias


def begin(walk: Walk, node: Node) -> Tensor:
    """Labels of a seed's output, fresh at first, the same for every layer that shares a weight."""
    sizes = walk.sizes.shape(node)
    if node.op == "get_attr" and _makes_features(node):
        rows = _started(walk, node.target, sizes[0])
        walk.cut_weight(node, node, 0, rows)
        return rows[:, None].expand(sizes)
    if node.op == "get_attr":
        labels = _started(walk, node.target, prod(sizes)).reshape(sizes)
        for axis in filter(lambda axis: varies(labels, axis), range(labels.dim())):
            walk.cut_weight(node, node, axis, labels.movedim(axis, 0).reshape(sizes[axis], -1)[:, 0])
        return labels
    weight, axis, bias = layer_weight(node)
    channel = 1 if is_op(node, *CONVOLUTIONS) else len(sizes) - 1
    owned = weight_of(node)
    labels = _started(walk, owned.target if owned else node, sizes[channel])
    walk.cut_weight(node, weight, axis, labels)
    if isinstance(bias, Node) and (walk.sizes.shape(bias) or (1,))[-1] == sizes[channel]:
        walk.cut_weight(node, bias, len(walk.sizes.shape(bias)) - 1, labels)
    shape = [1] * len(sizes)
    shape[channel] = sizes[channel]
    return labels.reshape(shape).expand(sizes)


def _makes_features(node: Node) -> bool:
    """Whether a stored matrix is a weight of which layers read parts."""
    parts = [node]
    while parts:
        users = [(part, user) for part in parts for user in part.users]
        if any(is_op(user, aten.linear) and user.args[1] is part is not node for part, user in users):
            return True
        parts = [user for _, user in users if whole_of(user) is node]
    return False


def _started(walk: Walk, key: Any, count: int) -> Tensor:
    if key not in walk.starts:
        walk.starts[key] = walk.union.new(count)
    return walk.union.find(walk.starts[key])
