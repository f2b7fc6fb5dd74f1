"""Blocks that repeat are followed once: what was found in one holds in a copy whose graph is the same, node by node.

A copy is the same when every labelled node has a counterpart with the same operator, arguments and shapes, read by the
same number of calls; what comes from outside is the very same node or one of the same shape that is no part of the
copy. Nothing is guessed: a counterpart that differs in anything, and the copy is followed on its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.graphs import aten, is_op, stored, value, written
from surgery.anatomy.units.trace import Coupling, trace_units
from surgery.anatomy.units.walk import Gather, computes, maker_of, readers_of

REMEMBERED = 8
"""How many different structures are compared with."""


class Differs(Exception):
    """The two are not copies of each other."""


def trace_all(graph_module: GraphModule, sites: Iterable[Sequence[Node]]) -> Iterator[Coupling]:
    """The couplings of sites that begin with these layers, each as `trace_units` finds it."""
    readers = readers_of(graph_module)
    known: list[tuple[list[Node], Coupling]] = []
    for seeds in sites:
        makers = list(dict.fromkeys(map(maker_of, seeds)))
        copies = (copy_of(coupling, theirs, makers, readers) for theirs, coupling in reversed(known))
        found = next((copy for copy in copies if copy is not None), None)
        if found is None:
            found = trace_units(graph_module, seeds)
            known = [*known[1 - REMEMBERED :], (makers, found)]
        yield found


def copy_of(coupling: Coupling, seeds: list[Node], others: list[Node], readers: Mapping) -> Coupling | None:
    """The coupling of `others`, if they are to their block what `seeds` are to theirs."""
    if coupling.obstacles or len(seeds) != len(others):
        return None
    try:
        pairs = _Pairs(coupling, readers)
        pairs.match_all(zip(seeds, others, strict=True))
    except Differs:
        return None
    to, named = pairs.to, pairs.names
    return replace(
        coupling,
        labels={to[node]: labels for node, labels in coupling.labels.items()},
        weights={(named[name], axis): labels for (name, axis), labels in coupling.weights.items()},
        gathers=tuple(Gather(to[g.user], to.get(g.operand, g.operand), g.axis, g.labels) for g in coupling.gathers),
        consumers=tuple(to[node] for node in coupling.consumers),
        obstacles=tuple(Obstacle(to[each.node], each.reason) for each in coupling.obstacles),
        mixed=tuple(to[node] for node in coupling.mixed if node in to),
        repeated=True,
    )


class _Pairs:
    """Nodes of one block and their counterparts in another, found from the seeds along what they compute."""

    def __init__(self, coupling: Coupling, readers: Mapping[str, list[Node]]) -> None:
        self.coupling, self.readers = coupling, readers
        self.inside = {*coupling.labels, *coupling.consumers, *(gather.operand for gather in coupling.gathers)}
        self.cut = {name for name, _ in coupling.weights}
        self.to: dict[Node, Node] = {}
        self.back: dict[Node, Node] = {}
        self.names: dict[str, str] = {}
        self.outside: list[Node] = []

    def match_all(self, seeds: Iterable[tuple[Node, Node]]) -> None:
        todo = list(seeds)
        while todo:
            one, two = todo.pop()
            if self._meet(one, two):
                todo.extend(self._around(one, two))
        missing = [node for node in self.inside if node not in self.to]
        if missing or self.cut - self.names.keys() or any(map(self._is_inside, self.outside)):
            raise Differs

    def _is_inside(self, node: Node) -> bool:
        return node in self.back or node.op == "get_attr" and node.target in self.names.values()

    def _meet(self, one: Node, two: Node) -> bool:
        """Note the pair; False if it was known."""
        if one in self.to or two in self.back:
            if self.to.get(one) is not two or self.back.get(two) is not one:
                raise Differs
            return False
        same = one.op == two.op and written(one) == written(two) and type(value(one)) is type(value(two))
        if not same or one.op != "get_attr" and one.target != two.target:
            raise Differs
        self.to[one], self.back[two] = two, one
        return True

    def _around(self, one: Node, two: Node) -> Iterator[tuple[Node, Node]]:
        """The pairs that follow from one: its operands, and those who read it where it is labelled."""
        if one.op == "get_attr":
            yield from self._named(one, two)
        else:
            yield from self._operands([one.args, one.kwargs], [two.args, two.kwargs])
        if one in self.coupling.labels:
            ours, theirs = _users(one), _users(two)
            if len(ours) != len(theirs):
                raise Differs
            yield from zip(ours, theirs, strict=True)

    def _named(self, one: Node, two: Node) -> Iterator[tuple[Node, Node]]:
        if self.names.setdefault(one.target, two.target) != two.target:
            raise Differs
        ours, theirs = self.readers.get(one.target, ()), self.readers.get(two.target, ())
        if len(ours) != len(theirs):
            raise Differs
        yield from (pair for pair in zip(ours, theirs, strict=True) if pair[0] in self.inside)

    def _operands(self, one: Any, two: Any) -> Iterator[tuple[Node, Node]]:
        if isinstance(one, Node) and isinstance(two, Node):
            if one in self.inside or one.op == "get_attr" and one.target in self.cut:
                yield one, two
            else:
                self._is_alike(one, two)
        elif isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
            for first, second in zip(one, two, strict=True):
                yield from self._operands(first, second)
        elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            for key, first in one.items():
                yield from self._operands(first, two[key])
        elif type(one) is not type(two) or one != two:
            raise Differs

    def _is_alike(self, one: Node, two: Node) -> None:
        """What comes from outside: the same node, or one of the same shape and, if it holds indices, values."""
        if one is two:
            self.outside.append(two)
            return
        if one.op != two.op or written(one) != written(two) or str(value(one)) != str(value(two)):
            raise Differs
        held = stored(one) if is_op(one, aten.lift_fresh_copy) or one.op == "get_attr" else None
        indices = held is not None and not held.is_floating_point()
        if indices and not torch.equal(held, stored(two)):
            raise Differs
        self.outside.append(two)


def _users(node: Node) -> list[Node]:
    return sorted(user for user in node.users if user.op == "output" or computes(user))
