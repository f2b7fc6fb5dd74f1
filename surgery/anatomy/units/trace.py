"""Follow labels from the layers that make a dimension to those that use it up.

Every output feature of the layers a site begins with gets a label of its own. Shape operations move labels as they move
numbers: they are simply run on them. Where two labelled tensors meet element by element their labels become one;
where an operation mixes an axis (attention, a norm) all labels along it become one. What is left apart in the end can
be cut apart: the channels of a feed-forward layer, the heads of an attention, or whole groups of them.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.graphs import is_layer, weight_of
from surgery.anatomy.units.producers import begin
from surgery.anatomy.units.rules import rule_of
from surgery.anatomy.units.sizes import Sizes
from surgery.anatomy.units.union import FREE, Union, compact, once
from surgery.anatomy.units.walk import Gather, Walk, computes, maker_of, readers_of, varies


@dataclass(frozen=True, eq=False)
class Coupling:
    """What is cut together.

    units       labels of the units, in the order in which the consumer reads them
    labels      node → the label of every element it computes, at small stand-ins for free sizes
    weights     (tensor's name, axis) → the label of every index of that axis
    consumers   the layers that sum the dimension away
    obstacles   why a cut is not possible; empty if it is
    mixed       nodes that made all labels one
    repeated    whether it was not followed itself, being the same as one that was
    """

    units: tuple[int, ...]
    labels: Mapping[Node, Any]
    weights: Mapping[tuple[str, int], Tensor]
    gathers: tuple[Gather, ...]
    consumers: tuple[Node, ...]
    obstacles: tuple[Obstacle, ...]
    mixed: tuple[Node, ...] = ()
    repeated: bool = False


def trace_units(graph_module: GraphModule, seeds: Iterable[Node]) -> Coupling:
    """What the outputs of these layers (linear, embedding, or a parameter) are coupled with.

    Layers and parameters that turn out to belong to it as well are followed too, until none is left.
    """
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    readers = readers_of(graph_module)
    begun = dict.fromkeys(map(maker_of, seeds))
    while True:
        walk = _settled(order, readers, begun)
        fresh = [node for node in walk.wanted if node not in begun]
        if not fresh:
            return _coupling(walk)
        begun |= dict.fromkeys(fresh)


def _settled(order: Mapping[Node, int], readers: Mapping[str, list[Node]], seeds: Iterable[Node]) -> Walk:
    """The first pass in which no two labels become one any more, and every unit is whole indices of one axis."""
    union, sizes = Union(), Sizes()
    starts: dict[Any, Tensor] = {}
    mixed: dict[Node, None] = {}
    while True:
        before = union.merges
        walk = Walk(order, union, sizes, starts, mixed)
        _run(walk, readers, seeds)
        if union.merges == before and not _joined(walk):
            return walk


def _joined(walk: Walk) -> bool:
    """Make one what cannot go alone, as it is no whole index of an axis: heads stored as [4 shards, 2 heads] go as
    whole shards. Whether there was any."""
    before = walk.union.merges
    for held in walk.labels.values():
        for labels in map(walk.union.find, held if isinstance(held, list) else [held]):
            axes = [axis for axis in range(labels.dim()) if varies(labels, axis)]
            while len(axes) > 1 and bool((once(labels) != FREE).all()):
                most = max(axes, key=lambda axis: len(labels.amin(axis).unique()))
                labels = walk.union.along(labels, most).unsqueeze(most)
                axes = [axis for axis in range(labels.dim()) if varies(labels, axis)]
    return walk.union.merges > before


def _run(walk: Walk, readers: Mapping[str, list[Node]], seeds: Iterable[Node]) -> None:
    """Follow labels in the graph's order, from the seeds to where they end."""
    started = {node for seed in seeds for node in _alike(seed, readers)}
    queue = [(walk.order[node], node) for node in started]
    heapq.heapify(queue)
    seen: set[Node] = set()
    while queue:
        _, node = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        found = rule_of(node)(walk, node) if any(source in walk.labels for source in node.all_input_nodes) else None
        found = begin(walk, node) if node in started else found
        if found is None:
            continue
        walk.labels[node] = found
        for user in node.users:
            if user.op == "output" or computes(user):
                heapq.heappush(queue, (walk.order[user], user))


def _alike(seed: Node, readers: Mapping[str, list[Node]]) -> Iterator[Node]:
    """The seed, and every other layer that reads the same weight."""
    yield seed
    weight = weight_of(seed) if is_layer(seed) else None
    yield from (
        node for node in readers.get(weight.target if weight else "", ()) if node is not seed and is_layer(node)
    )


def _coupling(walk: Walk) -> Coupling:
    """What was found, with labels as they finally stand."""
    place = walk.order.__getitem__

    def find(labels: Tensor) -> Tensor:
        return compact(walk.union.find(labels))

    ordered: dict[int, None] = {}
    for vector in walk.consumers.values():
        ordered |= dict.fromkeys(label for label in find(vector).tolist() if label != FREE)
    return Coupling(
        units=tuple(ordered),
        labels={node: _map(find, held) for node, held in walk.labels.items()},
        weights={at: find(vector) for at, vector in walk.weights.items()},
        gathers=tuple(Gather(g.user, g.operand, g.axis, find(g.labels)) for g in walk.gathers.values()),
        consumers=tuple(sorted(walk.consumers, key=place)),
        obstacles=tuple(sorted(walk.obstacles.values(), key=lambda obstacle: place(obstacle.node))),
        mixed=tuple(sorted(walk.mixed, key=place)),
    )


def _map(function: Callable, held: Any) -> Any:
    if isinstance(held, Tensor):
        return function(held)
    return None if held is None else [_map(function, each) for each in held]
