"""Noun phrases that name parts of a model. Only read here; `anatomy` finds what they match."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery.diagnostics import Source, Span, SpecError
from surgery.language.text import clauses_of
from surgery.language.tree import List, Phrase, Piece, Quantity, Range, Reference, Text, Word

WITHIN = ("of", "in", "at")
BUT = ("except",)
CONTINUES = (*WITHIN, *BUT)
GLOB = re.compile(r"[*?]|[^\W\d]\.\w")


@dataclass(frozen=True)
class Part:
    """A noun with indices or a pattern: `layers 4..11`, `module "model.layers.*"`. Empty indices mean all."""

    noun: tuple[str, ...]
    indices: tuple[Range, ...] = ()
    glob: str | None = None

    def __str__(self) -> str:
        glob = [str(Text(self.glob))] if self.glob is not None else []
        return " ".join([*self.noun, *_indices(self.indices), *glob])


@dataclass(frozen=True)
class Selector:
    """`heads [3, 5] of layer 2 except module "*.cross"`: a noun, what it lies in, what is left out.

    `noun` is in lower case as written. `text` is the phrase in canonical form, for messages and reports.
    """

    noun: tuple[str, ...]
    within: tuple[Part, ...] = ()
    but: tuple[Part, ...] = ()
    indices: tuple[Range, ...] = ()
    glob: str | None = None
    text: str = field(default="", compare=False)
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        own = str(Part(self.noun, self.indices, self.glob))
        return " ".join([own, *(f"in {part}" for part in self.within), *(f"except {part}" for part in self.but)])


def parse_selector(text: str, name: str = "<selector>") -> Selector:
    """Read a selector from its text, e.g. `attention in layers 4..11 except layer 7`. Raises SpecError."""
    source = Source(name, text)
    lead = "select of "
    clauses, faults = clauses_of(lead + text, lambda start, end: _shifted(source, start, end, len(lead)))
    if faults:
        raise SpecError(diagnostics=faults)
    clause = clauses[0]
    whole = Span(source, 0, len(text))
    extra = [*clause.pieces, *clause.settings, *filter(None, [clause.comparison])]
    if len(clauses) > 1 or extra:
        raise _misfit("a selector is one noun phrase", whole)
    return selector_of(clause.phrases[0].pieces, clause.phrases[1:], whole)


def selector_of(pieces: Sequence[Piece], phrases: Sequence[Phrase], span: Span | None) -> Selector:
    """A selector from the pieces of its phrase and the `of`, `in` and `except` phrases after it. Raises SpecError."""
    if len(pieces) == 1 and isinstance(pieces[0], Text) and not GLOB.search(pieces[0].value) and not phrases:
        return parse_selector(pieces[0].value)
    own = _part(pieces, span)
    within, but = [], []
    for phrase in phrases:
        if phrase.preposition not in CONTINUES:
            raise _misfit(f"a selector has no `{phrase.preposition}`", phrase.span)
        (but if phrase.preposition in BUT else within).append(_part(phrase.pieces, phrase.span))
    text = " ".join(map(str, (*pieces, *phrases)))
    return Selector(own.noun, tuple(within), tuple(but), own.indices, own.glob, text, span)


def _part(pieces: Sequence[Piece], span: Span | None) -> Part:
    noun, indices, glob = [], (), None
    for piece in pieces:
        if isinstance(piece, Text | Reference) and glob is None and not indices:
            glob = piece.value if isinstance(piece, Text) else str(piece)
        elif isinstance(piece, Word) and not indices and glob is None:
            noun.append(piece.text.lower())
        elif not isinstance(piece, Word | Text | Reference) and noun and not indices and glob is None:
            indices = tuple(map(_index, piece.items if isinstance(piece, List) else (piece,)))
        else:
            raise _misfit(f"`{piece}` does not fit into a selector", piece.span or span)
    return Part(tuple(noun or ["module"]), indices, glob)


def _index(piece: Piece) -> Range:
    if isinstance(piece, Range):
        return piece
    if isinstance(piece, Quantity) and not piece.unit and isinstance(piece.number, int):
        return Range(piece.number, piece.number, span=piece.span)
    raise _misfit(f"`{piece}` is no index", piece.span)


def _indices(indices: tuple[Range, ...]) -> list[str]:
    shown = [str(r.first) if r.first == r.last else str(r) for r in indices]
    return shown if len(shown) < 2 else [f"[{', '.join(shown)}]"]


def _misfit(message: str, span: Span | None) -> SpecError:
    help = "a selector reads like `class embeddings`, `heads [3, 5] of layer 2`, `attention in layers 4..11`"
    return SpecError(message, code="S113", span=span, help=help)


def _shifted(source: Source, start: int, end: int, lead: int) -> Span:
    return Span(source, max(0, start - lead), max(0, end - lead))
