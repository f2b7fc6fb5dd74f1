"""Sizes written into calls, as they have to be once units are gone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.dimension import Obstacle, describe
from surgery.anatomy.graphs import aten, is_op, stored
from surgery.anatomy.units.producers import CONVOLUTIONS
from surgery.anatomy.units.trace import Coupling
from surgery.anatomy.units.union import once

VIEWS = (aten.view, aten.reshape, aten._unsafe_view, aten.expand, aten.broadcast_to)


@dataclass(frozen=True)
class Edit:
    """Argument `position` of a call, or item `item` of it, becomes `value`; a Fraction multiplies what is there."""

    node: str
    position: int
    item: int | None
    value: int | Fraction


class Uneven(Exception):
    """A call whose sizes cannot follow; the reason."""


def edits(coupling: Coupling, removed: Tensor) -> tuple[tuple[Edit, ...], tuple[Obstacle, ...]]:
    """The edits that removing units asks for, and the calls that cannot follow."""
    found, refused = [], []
    for node, held in coupling.labels.items():
        try:
            for each in held if isinstance(held, list) else [held]:
                _check_slabs(node, each, removed)
            found += _of(node, held, coupling, removed)
        except Uneven as reason:
            refused.append(Obstacle(node, str(reason)))
    return tuple(found), tuple(refused)


def kept(labels: Tensor, removed: Tensor) -> Tensor:
    """Which indices of a labelled axis stay, [n] bool."""
    return ~gone(labels, removed)


def gone(labels: Tensor, removed: Tensor) -> Tensor:
    """Which labels are among the removed, of the same shape: looked up, as sorting for `isin` is slow."""
    table = torch.zeros(2 + max(_largest(labels), _largest(removed)), dtype=torch.bool)
    table[removed] = True
    return table[once(labels)].expand(labels.shape)  # FREE is -1: the last entry, which nothing removes


def _largest(labels: Tensor) -> int:
    return int(once(labels).max()) if labels.numel() else -1


def _of(node: Node, held: Any, coupling: Coupling, removed: Tensor) -> Iterator[Edit]:
    if is_op(node, *VIEWS):
        yield from _sized(node, 1, _stays(held, removed))
    elif is_op(node, aten.unflatten):
        start = node.args[1] % coupling.labels[node.args[0]].dim()
        stays = _stays(held, removed)
        yield from _sized(node, 2, stays[start : start + len(node.args[2])])
    elif is_op(node, aten.slice, aten.narrow):
        yield from _sliced(node, coupling, removed)
    elif is_op(node, aten.split, aten.split_with_sizes, aten.chunk):
        yield from _parted(node, held, removed)
    elif is_op(node, aten.select, aten.unbind):
        source = _stays(coupling.labels[node.args[0]], removed)
        if not source[_axis(node, 1, len(source))].all():
            raise Uneven(f"{describe(node)} takes single indices of it")
    elif is_op(node, aten.roll):
        axes = node.args[2] if isinstance(node.args[2], list | tuple) else [node.args[2]]
        if not all(_stays(held, removed)[axis].all() for axis in axes):
            raise Uneven(f"{describe(node)} turns it round")
    elif is_op(node, aten.index):
        _check_picks(node, coupling, removed)
    elif is_op(node, *CONVOLUTIONS) and len(node.args) > 6 and node.args[6] > 1:
        yield Edit(node.name, 6, None, int(_stays(held, removed)[1].sum()))


def _sized(node: Node, position: int, stays: Sequence[Tensor]) -> Iterator[Edit]:
    """A list of sizes, an axis each."""
    for item, stay in enumerate(stays):
        size = node.args[position][item]
        if stay.all() or size == -1:
            continue
        share = Fraction(int(stay.sum()), len(stay))
        yield Edit(node.name, position, item, share if isinstance(size, Node) else int(stay.sum()))


def _sliced(node: Node, coupling: Coupling, removed: Tensor) -> Iterator[Edit]:
    stays = _stays(coupling.labels[node.args[0]], removed)
    axis = _axis(node, 1, len(stays))
    stay = stays[axis]
    if stay.all():
        return
    if len(node.args) > 4 and node.args[4] != 1:
        raise Uneven(f"{describe(node)} takes every so many of it")
    before = torch.cat([torch.zeros(1, dtype=torch.int64), stay.cumsum(0)])
    positions = [at for at in (2, 3) if len(node.args) > at and isinstance(node.args[at], int)]
    bounds = {at: min(_wrapped(node.args[at], len(stay)), len(stay)) for at in positions}
    for at, bound in bounds.items():
        if is_op(node, aten.narrow) and at == 3:
            first = bounds[2]
            yield Edit(node.name, at, None, int(before[first + node.args[3]] - before[first]))
        elif node.args[at] <= len(stay):
            yield Edit(node.name, at, None, int(before[bound]))


def _parted(node: Node, held: list[Tensor], removed: Tensor) -> Iterator[Edit]:
    rank = held[0].dim()
    axis = _axis(node, 2, rank)
    counts = [int(_stays(part, removed)[axis].sum()) for part in held]
    sizes = [part.shape[axis] for part in held]
    if counts == sizes:
        return
    if isinstance(node.args[1], list | tuple):
        yield from (Edit(node.name, 1, item, count) for item, count in enumerate(counts))
    elif len(set(counts)) > 1:
        raise Uneven(f"{describe(node)} would get uneven parts")
    elif not is_op(node, aten.chunk):
        yield Edit(node.name, 1, None, counts[0])


def _check_picks(node: Node, coupling: Coupling, removed: Tensor) -> None:
    """Stored indices have to mean the same as before: nothing goes in front of them, or behind negative ones."""
    stays = _stays(coupling.labels[node.args[0]], removed)
    for axis, index in enumerate(node.args[1]):
        if index is None or stays[axis].all():
            continue
        numbers = stored(index)
        sides = [stays[axis][number:] if number < 0 else stays[axis][: number + 1] for number in numbers.tolist()]
        if not all(side.all() for side in sides):
            raise Uneven(f"{describe(node)} takes single indices of it")


def _stays(labels: Tensor, removed: Tensor) -> list[Tensor]:
    """Per axis, which indices stay: an index goes if all it holds goes."""
    return _axes(gone(labels, removed))


def _axes(goes: Tensor) -> list[Tensor]:
    if not goes.numel():
        return [torch.ones(size, dtype=torch.bool) for size in goes.shape]
    held = once(goes)
    others = [[other for other in range(goes.dim()) if other != axis] for axis in range(goes.dim())]
    stays = [~(held.all(axes) if axes else held) for axes in others]
    return [stay.expand(size) for stay, size in zip(stays, goes.shape, strict=True)]


def _check_slabs(node: Node, labels: Tensor, removed: Tensor) -> None:
    """What goes has to be whole indices of one axis or another."""
    goes = once(gone(labels, removed))
    if not goes.any():
        return
    left = torch.ones_like(goes)
    for axis, stay in enumerate(_axes(goes)):
        shape = [1] * goes.dim()
        shape[axis] = -1
        left &= stay.reshape(shape)
    if not torch.equal(left, ~goes):
        raise Uneven(f"{describe(node)} spreads a unit over two axes")


def _axis(node: Node, position: int, rank: int) -> int:
    given = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return given % rank


def _wrapped(bound: int, size: int) -> int:
    return max(0, bound + size) if bound < 0 else bound
