"""The state of one pass over a graph: which labels there are, what they cut, what forbids it, what else to follow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle, describe
from surgery.anatomy.graphs import aten, folded, is_layer, is_op, shape, tensor_inputs, value, weight_of, whole_of
from surgery.anatomy.units.sizes import Sizes
from surgery.anatomy.units.union import Union, once

LARGEST_TABLE = 1 << 20


@dataclass(frozen=True)
class Gather:
    """An operand computed elsewhere, of which `user` will read the kept part: `labels` along its `axis`.

    Where the axis is batch · n, `labels` are those of the n of one batch entry.
    """

    user: Node
    operand: Node
    axis: int
    labels: Tensor


@dataclass(eq=False)
class Walk:
    """One pass over the graph in its order, from the seeds to where labels end."""

    order: Mapping[Node, int]
    union: Union
    sizes: Sizes
    starts: dict[Any, Tensor]
    mixed: dict[Node, None]
    labels: dict[Node, Any] = field(default_factory=dict)
    weights: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    gathers: dict[tuple[Node, Node, int], Gather] = field(default_factory=dict)
    consumers: dict[Node, Tensor] = field(default_factory=dict)
    obstacles: dict[Node, Obstacle] = field(default_factory=dict)
    wanted: dict[Node, None] = field(default_factory=dict)

    def of(self, node: Any) -> Tensor | None:
        """The labels of an operand as they stand now; None for what has none."""
        held = self.labels.get(node) if isinstance(node, Node) else None
        return None if held is None or not isinstance(held, Tensor) else self.union.find(held)

    def refuse(self, node: Node, reason: str) -> None:
        self.obstacles.setdefault(node, Obstacle(node, reason))

    def mix(self, node: Node, labels: Tensor, axes: Iterable[int]) -> Tensor:
        """All labels along the axes become one; same shape."""
        apart = _differ(labels)
        for axis in axes:
            labels = self.union.along(labels, axis).unsqueeze(axis).expand(labels.shape)
        if apart and not _differ(labels):
            self.mixed[node] = None
        return labels

    def cut_weight(self, node: Node, weight: Any, axis: int, labels: Tensor) -> None:
        """A layer's tensor loses indices of one axis."""
        if not isinstance(weight, Node):
            return
        if weight.op != "get_attr":
            self.couple(node, weight, axis, labels)
            return
        rank = len(self.sizes.shape(weight))
        known = self.weights.setdefault((weight.target, axis % rank), labels)
        if known is not labels:
            self.union.unify(known, labels)

    def couple(self, node: Node, operand: Node, axis: int, labels: Tensor) -> None:
        """An operand without labels has to lose the same indices of an axis."""
        if operand.op == "get_attr":
            self.cut_weight(node, operand, axis, labels)
            return
        origin = self._origin(operand) if operand not in self.labels else None
        if origin is not None:
            self.wanted[origin] = None
            return
        period = folded(shape(operand)[axis])
        rows = labels.reshape(-1, period) if period else labels[None]
        if not bool((rows == rows[:1]).all()):
            self.refuse(node, f"{describe(node)} reads heads and batch in one axis, not head by head")
            return
        self.gathers[node, operand, axis] = Gather(node, operand, axis, rows[0])

    def follow(self, node: Node, operand: Node, axis: int, labels: Tensor | None) -> None:
        """An operand of a product that carries a cut axis in full: the layers it comes from are cut too, if there are
        any; entries that are all alike (keys that all heads share) are read fewer times."""
        if operand in self.labels or not self.want_layers_behind(operand):
            if labels is not None:
                self.couple(node, operand, axis, labels)

    def want_layers_behind(self, operand: Node) -> bool:
        """Ask that the nearest layers an operand is computed from be followed too; False if there is none."""
        found, seen, todo = [], set(), [operand]
        while todo:
            node = todo.pop()
            if node in seen or node in self.labels:
                continue
            seen.add(node)
            if is_layer(node):
                found.append(maker_of(node))
            elif node.op == "call_function":
                todo.extend(tensor_inputs(node) or node.all_input_nodes)
        self.wanted |= dict.fromkeys(found)
        return bool(found)

    def _origin(self, operand: Node) -> Node | None:
        """The layer or parameter an operand comes from through a chain that nothing else reads."""
        node = whole_of(operand) if whole_of(operand).op == "get_attr" else operand
        while len(node.users) == 1 or node.op == "get_attr":
            if is_layer(node):
                return maker_of(node)
            if node.op == "get_attr":
                return node if prod(self.sizes.shape(node) or (LARGEST_TABLE + 1,)) <= LARGEST_TABLE else None
            sources = tensor_inputs(node)
            if node.op != "call_function" or len(sources) != 1:
                return None
            node = sources[0]
        return None


def settle(walk: Walk, node: Node, operand: Node, total: Tensor) -> None:
    """Couple an operand that has no labels with the axes along which those of the result differ."""
    if walk.of(operand) is not None:
        return
    own = walk.sizes.shape(operand)
    for axis in range(len(own)):
        place = total.dim() - len(own) + axis
        if own[axis] > 1 and varies(total, place):
            vector = along(total, place)
            if vector is None:
                walk.refuse(node, f"{describe(node)} spreads a unit over two axes")
            else:
                walk.couple(node, operand, axis, vector)


def readers_of(graph_module: GraphModule) -> dict[str, list[Node]]:
    """Tensor name → the calls that read it."""
    found: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(node.target, []).extend(node.users)
    return found


def computes(node: Node) -> bool:
    """Whether a node is a call that gives tensors, not a size."""
    held = value(node)
    return node.op == "call_function" and not isinstance(held, int | float | torch.SymInt | None)


def maker_of(layer: Node) -> Node:
    """What labels of a layer's outputs begin with: the layer, or the stored tensor of which its weight is a part."""
    whole = whole_of(layer.args[1]) if is_op(layer, aten.linear) and weight_of(layer) is None else layer
    return whole if whole.op == "get_attr" else layer


def varies(labels: Tensor, axis: int) -> bool:
    """Whether labels differ along an axis."""
    labels = once(labels)
    return labels.shape[axis] > 1 and bool((labels != labels.narrow(axis, 0, 1)).any())


def _differ(labels: Tensor) -> bool:
    flat = once(labels).reshape(-1)
    return bool((flat != flat[:1]).any())


def along(labels: Tensor, axis: int) -> Tensor | None:
    """The label of each index of an axis; None where one index holds several."""
    held = once(labels)
    flat = held.movedim(axis, 0).reshape(held.shape[axis], -1)
    first = flat[:, 0]
    return first.expand(labels.shape[axis]) if bool((flat == first[:, None]).all()) else None


def unknown(walk: Walk, node: Node) -> None:
    """An operation that has no rule."""
    walk.refuse(node, f"{describe(node)} reads it" if node.op != "output" else "it is an output of the model")
