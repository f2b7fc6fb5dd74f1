"""A sentence stitched from several places of a YAML document; its spans point at those places."""

from bisect import bisect_right

import yaml

from surgery.diagnostics import Diagnostic, Source, Span
from surgery.language.text import clauses_of
from surgery.language.tree import Clause


class Fragment:
    """Parts joined by spaces. A part that stands in the source letter for letter maps position by position;
    any other part (escapes, folded lines) maps to its whole node."""

    def __init__(self, source: Source):
        self.source = source
        self.text = ""
        self.starts: list[int] = []
        self.places: list[tuple[Span | None, int | None]] = []

    def add(self, text: str, span: Span | None, index: int | None) -> None:
        """Append a part that begins at character `index` of the source, or lies somewhere in `span`."""
        self.text += " " if self.text else ""
        self.starts.append(len(self.text))
        self.places.append((span, index))
        self.text += text

    def add_node(self, node: yaml.ScalarNode) -> None:
        """Append a scalar's value."""
        start, end = node.start_mark.index, node.end_mark.index
        span = Span(self.source, start, max(start + 1, end))
        for index in (start, start + 1):
            if self.source.text.startswith(node.value, index) and index + len(node.value) <= end:
                return self.add(node.value, span, index)
        self.add(node.value, span, None)

    def clauses(self) -> tuple[list[Clause], list[Diagnostic]]:
        """The clauses and faults of the stitched text."""
        return clauses_of(self.text, self.locate)

    def locate(self, start: int, end: int) -> Span | None:
        """The place in the source of a stretch of the stitched text."""
        first, last = self._place(start), self._place(max(start, end - 1))
        if first is None or last is None:
            return first or last
        return Span(self.source, first.start, max(last.end, first.start + 1))

    def _place(self, position: int) -> Span | None:
        part = bisect_right(self.starts, position) - 1
        span, index = self.places[part]
        if index is None:
            return span
        at = index + position - self.starts[part]
        return Span(self.source, at, at + 1)
