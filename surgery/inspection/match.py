"""Which row of one graph is which row of another."""

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from surgery.inspection.rows import Row


def match(before: list[Row], after: list[Row], *, by_module: bool) -> dict[Row, Row]:
    """Rows of `after` by the row of `before` they continue.

    Within a module, the longest runs of like operators on like weights are matched in order; what is then left, over
    the whole graph. Names of nodes play no part, so an inserted node shifts nothing.
    """
    pairs: dict[Row, Row] = {}
    if by_module:
        theirs = _by_owner(after)
        for owner, ours in _by_owner(before).items():
            pairs.update(_align(ours, theirs.get(owner, [])))
    taken = set(pairs.values())
    pairs.update(_align([row for row in before if row not in pairs], [row for row in after if row not in taken]))
    return pairs


def _by_owner(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.owner, []).append(row)
    return found


def _align(before: list[Row], after: list[Row]) -> Iterator[tuple[Row, Row]]:
    matcher = SequenceMatcher(None, [row.token for row in before], [row.token for row in after], autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        yield from zip(before[start : start + size], after[other : other + size], strict=True)
