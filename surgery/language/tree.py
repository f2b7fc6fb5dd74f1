"""The one tree that text and YAML become. Nodes are frozen; where they were written is not part of what they are."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import basename

from surgery.diagnostics import Source, Span
from surgery.language.quantities import UNITS, number_text

PREPOSITIONS = ("of", "via", "to", "with", "in", "into", "from", "except", "where", "by", "on", "at", "when")
BARE_PATH = re.compile(r'[^\s#;,\[\]"<>]+')


@dataclass(frozen=True, kw_only=True)
class Node:
    """Anything with a place in a source."""

    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Word(Node):
    """A bare word: a verb, a keyword, a noun."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Quantity(Node):
    """A number and its unit: `66%`, `1.02x`, `32`, `20ms`, `2GB`. `number` is as written, before the unit applies."""

    number: int | float
    unit: str = ""

    @property
    def value(self) -> float:
        """The number in base units: a fraction for `%`, a ratio for `x`, seconds, bytes, or a plain count."""
        unit = UNITS[self.unit]
        return self.number * unit.scale / unit.per if unit.per > 1 else self.number * unit.scale

    @property
    def measure(self) -> str:
        """What the unit measures: `number`, `share`, `ratio`, `time` or `bytes`."""
        return UNITS[self.unit].measure

    def __str__(self) -> str:
        return number_text(self.number) + self.unit


@dataclass(frozen=True)
class Range(Node):
    """Whole numbers `first` to `last`, both included. A single index is a range of one; -1 counts from the end."""

    first: int
    last: int

    def __contains__(self, index: int) -> bool:
        return self.first <= index <= self.last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


@dataclass(frozen=True)
class Ratio(Node):
    """A pattern such as `2:4`: `kept` out of every `total`."""

    kept: int
    total: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.total}"


@dataclass(frozen=True)
class Text(Node):
    """A quoted string; `value` is without quotes and escapes."""

    value: str

    def __str__(self) -> str:
        return quoted(self.value)


@dataclass(frozen=True)
class Reference(Node):
    """A model or data source: `zoo:digits-dit`, `text:"corpus.txt"`, `./folder` (an empty scheme)."""

    scheme: str
    path: str

    def __str__(self) -> str:
        if not self.scheme:
            return self.path
        return f"{self.scheme}:{self.path if BARE_PATH.fullmatch(self.path) else quoted(self.path)}"


Atom = Word | Quantity | Range | Ratio | Text | Reference


@dataclass(frozen=True)
class List(Node):
    """`[a, b]`: flat."""

    items: tuple[Atom, ...]

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


Piece = Atom | List


@dataclass(frozen=True)
class Phrase(Node):
    """A preposition and what follows it: `of class embeddings`. `by=greedy` is read as `by greedy`."""

    preposition: str
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return " ".join((self.preposition, *map(str, self.pieces)))


@dataclass(frozen=True)
class Setting(Node):
    """`key=value`."""

    key: str
    value: Piece

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True)
class Comparison(Node):
    """`<= 1.02x`; the operator is one of `<=`, `>=`, `<`, `>`, `==`."""

    operator: str
    value: Piece

    def __str__(self) -> str:
        return f"{self.operator} {self.value}"


@dataclass(frozen=True)
class Clause(Node):
    """One sentence.

    `above` are the comment lines before it, an empty one being a blank line; `beside` is the comment on its line.
    """

    verb: Word
    pieces: tuple[Piece, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    comparison: Comparison | None = None
    settings: tuple[Setting, ...] = ()
    above: tuple[str, ...] = ()
    beside: str = ""

    @property
    def tails(self) -> tuple[Phrase | Comparison | Setting, ...]:
        """Everything after the pieces, in the order it is written out."""
        return (*self.phrases, *([self.comparison] if self.comparison else []), *self.settings)

    @property
    def place(self) -> str:
        """`file:line:column` as documents keep it, without the file's folder; nothing for a clause made in Python."""
        return basename(self.span.place) if self.span else ""

    def __str__(self) -> str:
        return " ".join(map(str, (self.verb, *self.pieces, *self.tails)))


@dataclass(frozen=True)
class Spec:
    """What a person wants done: clauses in the order written. `below` are comment lines after the last one."""

    clauses: tuple[Clause, ...] = ()
    below: tuple[str, ...] = ()
    source: Source | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        return "\n".join(map(str, self.clauses))


def quoted(value: str) -> str:
    """A string as the language writes it: JSON's escapes, other printable characters as they are."""
    return json.dumps(value, ensure_ascii=False) if value.isprintable() else '"' + "".join(map(_escaped, value)) + '"'


def _escaped(char: str) -> str:
    if char.isprintable():
        return {'"': '\\"', "\\": "\\\\"}.get(char, char)
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return known.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
