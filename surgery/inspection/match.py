"""Which row of one graph is which row of another."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from difflib import SequenceMatcher

from surgery.inspection.rows import Row

Key = Callable[[Row], Hashable]


def match(before: list[Row], after: list[Row], *, by_module: bool) -> dict[Row, Row]:
    """Rows of `after` by the row of `before` they continue.

    Under each heading, the longest runs of like operators that read the like are matched in order; of what is left,
    like operators; then the same over the whole graph. Names of nodes play no part: an inserted node shifts nothing.
    """
    pairs: dict[Row, Row] = {}
    places: list[Key] = [lambda row: row.heading] if by_module else []
    for place in (*places, lambda row: ""):
        for likeness in (lambda row: row.context, lambda row: row.token):
            _extend(pairs, before, after, place, likeness)
    return pairs


def _extend(pairs: dict[Row, Row], before: list[Row], after: list[Row], place: Key, likeness: Key) -> None:
    """Match what is not matched yet, within each place."""
    taken = set(pairs.values())
    theirs = _grouped((row for row in after if row not in taken), place)
    for where, ours in _grouped((row for row in before if row not in pairs), place).items():
        pairs.update(_align(ours, theirs.get(where, []), likeness))


def _grouped(rows: Iterable[Row], place: Key) -> dict[Hashable, list[Row]]:
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(place(row), []).append(row)
    return found


def _align(before: list[Row], after: list[Row], likeness: Key) -> Iterator[tuple[Row, Row]]:
    matcher = SequenceMatcher(None, list(map(likeness, before)), list(map(likeness, after)), autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        yield from zip(before[start : start + size], after[other : other + size], strict=True)
