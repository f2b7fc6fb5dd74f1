"""Follow labels from the layers that make a dimension to those that use it up.

Every output feature of the layers a site begins with gets a label of its own. Shape operations move labels as they move
numbers: they are simply run on them. Where two labelled tensors meet element by element their labels become one;
where an operation mixes an axis (attention, a norm) all labels along it become one. What is left apart in the end can
be cut apart: the channels of a feed-forward layer, the heads of an attention, or whole groups of them.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle, describe
from surgery.anatomy.graphs import is_layer, is_op, tensor_inputs, value
from surgery.anatomy.units.sizes import Sizes
from surgery.anatomy.units.union import FREE, Union

LARGEST_TABLE = 1 << 20


@dataclass(frozen=True)
class Gather:
    """An operand computed elsewhere, of which `user` will read the kept part: `labels` along its `axis`."""

    user: Node
    operand: Node
    axis: int
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """What is cut together.

    units       labels of the units, in the order in which the consumer reads them
    labels      node → the label of every element it computes, at small stand-ins for free sizes
    weights     (tensor's name, axis) → the label of every index of that axis
    consumers   the layers that sum the dimension away
    obstacles   why a cut is not possible; empty if it is
    mixed       nodes that made several labels one, with the axis they mix
    """

    units: tuple[int, ...]
    labels: Mapping[Node, Any]
    weights: Mapping[tuple[str, int], Tensor]
    gathers: tuple[Gather, ...]
    consumers: tuple[Node, ...]
    obstacles: tuple[Obstacle, ...]
    mixed: tuple[Node, ...] = ()


Seed = Node


def trace_units(graph_module: GraphModule, seeds: Iterable[Seed]) -> Coupling:
    """What the outputs of these layers (linear, embedding, convolution, or a parameter) are coupled with.

    Layers and parameters that turn out to belong to it as well are followed too, until none is left.
    """
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    readers = _readers(graph_module)
    begun = dict.fromkeys(seeds)
    while True:
        union, sizes = Union(), Sizes()
        starts: dict[Any, Tensor] = {}
        while True:
            before = union.merges
            walk = Walk(order, union, sizes, starts, readers)
            walk.run(begun)
            if union.merges == before:
                break
        fresh = [node for node in walk.wanted if node not in begun]
        if not fresh:
            return walk.result()
        begun |= dict.fromkeys(fresh)


def _readers(graph_module: GraphModule) -> dict[str, list[Node]]:
    """Tensor name → the calls that read it."""
    found: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(node.target, []).extend(node.users)
    return found


@dataclass(eq=False)
class Walk:
    """One pass over the graph in its order, from the seeds to where labels end."""

    order: Mapping[Node, int]
    union: Union
    sizes: Sizes
    starts: dict[Any, Tensor]
    readers: Mapping[str, list[Node]]
    labels: dict[Node, Any] = field(default_factory=dict)
    weights: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    gathers: dict[tuple[Node, Node, int], Gather] = field(default_factory=dict)
    consumers: dict[Node, Tensor] = field(default_factory=dict)
    obstacles: dict[Node, Obstacle] = field(default_factory=dict)
    mixed: dict[Node, None] = field(default_factory=dict)
    wanted: dict[Node, None] = field(default_factory=dict)

    def run(self, seeds: Iterable[Node]) -> None:
        from surgery.anatomy.units.producers import begin
        from surgery.anatomy.units.rules import rule_of

        seeds = dict.fromkeys(seeds)
        queue = [(self.order[node], node) for seed in seeds for node in self._alike(seed)]
        started = {node for _, node in queue}
        heapq.heapify(queue)
        seen: set[Node] = set()
        while queue:
            _, node = heapq.heappop(queue)
            if node in seen:
                continue
            seen.add(node)
            found = rule_of(node)(self, node) if any(source in self.labels for source in node.all_input_nodes) else None
            found = begin(self, node) if node in started else found
            if found is None:
                continue
            self.labels[node] = found
            for user in node.users:
                if user.op == "output" or _computes(user):
                    heapq.heappush(queue, (self.order[user], user))

    def _alike(self, seed: Node) -> Iterator[Node]:
        """The seed, and every other layer that reads the same weight."""
        from surgery.anatomy.units.producers import weight_name

        yield seed
        name = weight_name(seed) if seed.op != "get_attr" else None
        yield from (node for node in self.readers.get(name or "", []) if node is not seed and is_layer(node))

    def of(self, node: Any) -> Tensor | None:
        """The labels of an operand as they stand now; None for what has none."""
        held = self.labels.get(node) if isinstance(node, Node) else None
        return None if held is None or not isinstance(held, Tensor) else self.union.find(held)

    def refuse(self, node: Node, reason: str) -> None:
        self.obstacles.setdefault(node, Obstacle(node, reason))

    def mix(self, node: Node, labels: Tensor, axes: Iterable[int]) -> Tensor:
        """All labels along the axes become one; same shape."""
        for axis in axes:
            if varies(labels, axis):
                self.mixed[node] = None
            labels = self.union.along(labels, axis).unsqueeze(axis).expand(labels.shape)
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
        origin = self._origin(operand)
        if origin is not None:
            self.wanted[origin] = None
            return
        self.gathers[node, operand, axis] = Gather(node, operand, axis, labels)

    def want_layers_behind(self, operand: Node) -> bool:
        """Ask that the nearest layers an operand is computed from be followed too; False if there is none."""
        found, seen, todo = [], set(), [operand]
        while todo:
            node = todo.pop()
            if node in seen or node in self.labels:
                continue
            seen.add(node)
            if is_layer(node):
                found.append(node)
            elif node.op == "call_function":
                todo.extend(tensor_inputs(node) or node.all_input_nodes)
        self.wanted |= dict.fromkeys(found)
        return bool(found)

    def _origin(self, operand: Node) -> Node | None:
        """The layer or parameter an operand comes from through a chain that nothing else reads."""
        node = operand
        while len(node.users) == 1 or node is operand:
            if len(node.users) > 1:
                return None
            if is_layer(node):
                return node
            if node.op == "get_attr":
                size = 1
                for each in self.sizes.shape(node) or (LARGEST_TABLE + 1,):
                    size *= each
                return node if size <= LARGEST_TABLE else None
            sources = tensor_inputs(node)
            if node.op != "call_function" or len(sources) != 1:
                return None
            node = sources[0]
        return None

    def result(self) -> Coupling:
        """What was found, with labels as they finally stand."""
        find = self.union.find
        labels = {node: _map(find, held) for node, held in self.labels.items()}
        ordered: dict[int, None] = {}
        for vector in self.consumers.values():
            ordered |= dict.fromkeys(label for label in find(vector).tolist() if label != FREE)
        weights = {place: find(vector) for place, vector in self.weights.items()}
        gathers = tuple(Gather(g.user, g.operand, g.axis, find(g.labels)) for g in self.gathers.values())
        found = sorted(self.obstacles.values(), key=lambda obstacle: self.order[obstacle.node])
        mixed = sorted(self.mixed, key=self.order.__getitem__)
        consumers = tuple(sorted(self.consumers, key=self.order.__getitem__))
        return Coupling(tuple(ordered), labels, weights, gathers, consumers, tuple(found), tuple(mixed))


def varies(labels: Tensor, axis: int) -> bool:
    """Whether labels differ along an axis."""
    return labels.shape[axis] > 1 and bool((labels != labels.narrow(axis, 0, 1)).any())


def along(labels: Tensor, axis: int) -> Tensor | None:
    """The label of each index of an axis; None where one index holds several."""
    flat = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    first = flat[:, 0]
    return first if bool((flat == first[:, None]).all()) else None


def _computes(node: Node) -> bool:
    held = value(node)
    return node.op == "call_function" and not isinstance(held, int | float | torch.SymInt | None)


def _map(function: Callable, held: Any) -> Any:
    if isinstance(held, Tensor):
        return function(held)
    return None if held is None else [_map(function, each) for each in held]


def unknown(walk: Walk, node: Node) -> None:
    """An operation that has no rule."""
    walk.refuse(node, f"{describe(node)} reads it" if node.op != "output" else "it is an output of the model")


__all__ = ["Coupling", "Gather", "Seed", "Walk", "along", "is_op", "trace_units", "unknown", "varies"]
