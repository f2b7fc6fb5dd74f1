"""Comments and blank lines, given to the clauses they belong to, so that the formatter can keep them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from surgery.diagnostics import Source
from surgery.language.tree import Clause

BLANK_LINE = re.compile(r"\n[ \t]*\n")


def attach(
    source: Source, clauses: Sequence[Clause], comments: Sequence[tuple[int, int]]
) -> tuple[tuple[Clause, ...], tuple[str, ...]]:
    """The clauses with their comments, and what stands below the last one. `comments` are (start, end) in order."""
    above: list[list[str]] = [[] for _ in range(len(clauses) + 1)]
    beside = [""] * len(clauses)
    reached = 0
    marks = sorted(
        [(c.span.start, c.span.end, index) for index, c in enumerate(clauses)] + [(*c, -1) for c in comments]
    )
    for start, end, index in marks:
        owner = index if index >= 0 else _neighbour(source, clauses, start)
        if index < 0 and owner is not None and not beside[owner]:
            beside[owner] = source.text[start:end].rstrip()
            reached = max(reached, end)
            continue
        target = index if index >= 0 else sum(c.span.start < start for c in clauses)
        if index < 0 and target and start < clauses[target - 1].span.end:
            target -= 1  # a comment inside a clause of many lines goes above it
        if reached and BLANK_LINE.search(source.text, reached, start):
            above[target].append("")
        if index < 0:
            above[target].append(source.text[start:end].rstrip())
        reached = max(reached, end)
    kept = tuple(replace(c, above=tuple(above[i]), beside=beside[i]) for i, c in enumerate(clauses))
    return kept, tuple(above[-1])


def _neighbour(source: Source, clauses: Sequence[Clause], start: int) -> int | None:
    """The last clause that begins before a comment on the line where that clause begins or ends."""
    line = source.position(start)[0]
    for index in reversed(range(len(clauses))):
        span = clauses[index].span
        if span.start > start:
            continue
        lines = {source.position(span.start)[0], source.position(max(span.start, span.end - 1))[0]}
        return index if line in lines else None
    return None
