"""A budget of blocks, spent on what keeps most attention: sinks, windows, columns, distances, single blocks per head."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import torch

from surgery.kernels.layouts.rules import Rules

SINK, WINDOW, VERTICAL, SLASH, BLOCKS = "sink", "window", "vertical", "slash", "blocks"
Unit = tuple[str, int, int]


@dataclass(eq=False)
class Head:
    """What one head keeps so far. `mass` [R, C] is its attention by blocks; each block keeps its own diagonal."""

    mass: numpy.ndarray
    causal: bool
    kept: numpy.ndarray = field(init=False)
    columns: list[int] = field(default_factory=list)
    distances: list[int] = field(default_factory=lambda: [0])
    blocks: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = numpy.eye(*self.mass.shape, dtype=bool)

    @property
    def possible(self) -> int:
        rows, columns = self.mass.shape
        return rows * (rows + 1) // 2 if self.causal else rows * columns

    def of(self, unit: Unit) -> numpy.ndarray:
        """Which blocks a unit is made of: bool [R, C]."""
        kind, number, column = unit
        rows, columns = self.mass.shape
        found = numpy.zeros((rows, columns), dtype=bool)
        if kind in (SINK, VERTICAL):
            found[number if self.causal else 0 :, number] = True
        elif kind == BLOCKS:
            found[number, column] = True
        else:
            for distance in {number, -number} if kind == WINDOW and not self.causal else {number}:
                found |= numpy.eye(rows, columns, -distance, dtype=bool)
        return found

    def gain(self, unit: Unit) -> tuple[float, int]:
        """Attention that a unit adds, and blocks that it costs."""
        kind, number, column = unit
        if kind == BLOCKS:
            free = not self.kept[number, column]
            return float(self.mass[number, column]) * free, int(free)
        new = self.of(unit) & ~self.kept
        return float(self.mass[new].sum()), int(new.sum())

    def take(self, unit: Unit) -> None:
        kind, number, column = unit
        self.kept |= self.of(unit)
        if kind in (SINK, VERTICAL):
            self.columns.append(number)
        elif kind == BLOCKS:
            self.blocks.append((number, column))
        else:
            self.distances += {number, -number} if kind == WINDOW and not self.causal else {number}

    def units(self, forms: Sequence[str], most: int) -> Iterator[Unit]:
        """What can be taken; of sinks and windows the next one, of single blocks the `most` that hold most attention."""
        rows, columns = self.mass.shape
        if SINK in forms:
            yield SINK, 0, 0
        if WINDOW in forms:
            yield WINDOW, 1, 0
        if VERTICAL in forms:
            yield from ((VERTICAL, column, 0) for column in range(columns))
        if SLASH in forms:
            first = 1 if self.causal else 1 - columns
            yield from ((SLASH, distance, 0) for distance in range(first, rows) if distance)
        if BLOCKS in forms:
            left = numpy.where(self.kept, -1.0, self.mass).ravel()
            best = numpy.argsort(-left, kind="stable")[:most]
            yield from ((BLOCKS, int(place) // columns, int(place) % columns) for place in best if left[place] > 0)


def spend(heads: Sequence[Head], budget: int, forms: Sequence[str]) -> None:
    """Let heads take what holds most attention per block, in common, until `budget` blocks are kept by all of them.

    Greedy, each unit counted for what it adds to those taken before. A unit that is too large for what is left is passed
    over for smaller ones.
    """
    left = budget - sum(int(head.kept.sum()) for head in heads)
    queue: list[tuple[float, int, Unit]] = []
    for index, head in enumerate(heads):
        for unit in head.units(forms, max(left, 0)):
            queue.append((_rate(head, unit), index, unit))
    heapq.heapify(queue)
    while queue and left > 0:
        _, index, unit = heapq.heappop(queue)
        head = heads[index]
        gain, cost = head.gain(unit)
        if not cost or gain <= 0 or cost > left:
            _next(queue, index, head, unit, taken=not cost)
            continue
        if queue and -gain / cost > queue[0][0]:
            heapq.heappush(queue, (-gain / cost, index, unit))
            continue
        head.take(unit)
        left -= cost
        _next(queue, index, head, unit, taken=True)


def _rate(head: Head, unit: Unit) -> float:
    """Attention per block, negative: the most comes first."""
    gain, cost = head.gain(unit)
    return -gain / cost if cost else 0.0


def _next(queue: list, index: int, head: Head, unit: Unit, *, taken: bool) -> None:
    """Sinks and windows grow one by one."""
    kind, number, _ = unit
    limit = head.mass.shape[1] if kind == SINK else head.mass.shape[0]
    if taken and kind in (SINK, WINDOW) and number + 1 < limit:
        following = (kind, number + 1, 0)
        heapq.heappush(queue, (_rate(head, following), index, following))


def at_random(heads: Sequence[Head], budget: int, seed: int) -> None:
    """The control: single blocks drawn alike, as many as the budget holds, spread evenly over heads."""
    chance = numpy.random.default_rng(seed)
    for index, head in enumerate(heads):
        share = budget * (index + 1) // len(heads) - budget * index // len(heads)
        open_ = ~head.kept & (numpy.tri(*head.mass.shape, dtype=bool) if head.causal else True)
        places = numpy.flatnonzero(open_)
        for place in chance.permutation(places)[: max(share - int(head.kept.sum()), 0)]:
            head.take((BLOCKS, int(place) // head.mass.shape[1], int(place) % head.mass.shape[1]))


def rules_of(heads: Sequence[Head], block: int) -> Rules:
    """The heads of one site as rules."""
    singles = [(index, *place) for index, head in enumerate(heads) for place in head.blocks]
    entries = torch.tensor(sorted(singles), dtype=torch.int32).reshape(-1, 3)
    size = max(heads[0].mass.shape)
    return Rules.of(
        len(heads),
        block,
        columns=[sorted(set(head.columns)) for head in heads],
        distances=[sorted(set(head.distances)) for head in heads],
        entries=entries,
        length=size * block if singles else 0,
    )
