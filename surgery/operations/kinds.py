"""What a field can hold, and how it is read from the pieces of a clause."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from surgery.diagnostics import Span, SpecError, did_you_mean
from surgery.language import Quantity, Reference, Selector, Text, Word
from surgery.language.selector import selector_of
from surgery.language.text import clauses_of
from surgery.language.tree import List, Phrase, Piece


AUTO = "auto"
"""The share that is searched for."""


@dataclass(frozen=True)
class Given:
    """What a clause gives a field. `phrases` are the `in` and `except` phrases that go with a selector."""

    pieces: tuple[Piece, ...]
    span: Span | None
    phrases: tuple[Phrase, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, (*self.pieces, *self.phrases)))


@dataclass(frozen=True)
class Kind:
    """`read` raises SpecError for what does not fit; `show` writes a value back; `usage` stands in usage lines."""

    name: str
    usage: str
    read: Callable[[Given], Any]
    show: Callable[[Any], str] = str
    schema: dict = field(default_factory=lambda: {"type": "string"})
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """A part of something: `fraction` (0 to 1), `count`, or neither: `auto`, which is searched for under the spec's
    requirements and is nothing until then."""

    fraction: Fraction | None = None
    count: int | None = None

    @property
    def auto(self) -> bool:
        return self.fraction is None and self.count is None

    def of(self, width: int) -> int:
        """How many of `width` this is. A half is rounded down, so that a tie takes less; never more than `width`."""
        if self.auto:
            return 0
        if self.count is not None:
            return min(self.count, width)
        return math.ceil(self.fraction * width - Fraction(1, 2))

    def __str__(self) -> str:
        if self.auto:
            return AUTO
        if self.count is not None:
            return str(self.count)
        return f"{Quantity(float(self.fraction * 100))}%"

    @classmethod
    def parse(cls, text: str | float) -> "Share":
        """From `"66%"`, a fraction such as 0.66, a count, or `"auto"`."""
        if isinstance(text, float):
            return cls(fraction=Fraction(repr(text)))
        if isinstance(text, int):
            return cls(count=text)
        return SEARCHED.read(given(text))


def given(text: str) -> Given:
    """The pieces of a text, for values that come from Python. Raises SpecError."""
    pieces = pieces_of(text)
    if pieces is None:
        raise SpecError(f"cannot read `{text}`", code="S107")
    return Given(pieces, None)


def pieces_of(text: str) -> tuple[Piece, ...] | None:
    """A text read as pieces; None where it holds more than that."""
    clauses, faults = clauses_of(f"x {text}", lambda start, end: None)
    if faults or len(clauses) != 1 or clauses[0].tails:
        return None
    return clauses[0].pieces


def opened(given: Given) -> tuple[Piece, ...]:
    """The pieces; those inside of it where a single string was given (`when="last 10 steps"`)."""
    if len(given.pieces) == 1 and isinstance(given.pieces[0], Text):
        return pieces_of(given.pieces[0].value) or given.pieces
    return given.pieces


def kind_of(*kind: Any) -> Kind:
    """The kind that choices, a Python type or a Kind stand for; a selector where nothing is given."""
    if not kind:
        return SELECTOR
    if all(isinstance(one, str) for one in kind):
        return choice(*kind)
    if len(kind) == 1 and isinstance(kind[0], Kind):
        return kind[0]
    if len(kind) == 1 and kind[0] in TYPES:
        return TYPES[kind[0]]
    raise TypeError(f"no kind of field: {kind}")


def choice(*choices: str) -> Kind:
    """One of some words."""

    def read(given: Given) -> str:
        text = " ".join(map(str, opened(given)))
        if text in choices:
            return text
        raise _wrong(given, f"is not one of {', '.join(choices)}", did_you_mean(text, choices))

    return Kind(
        "one of " + ", ".join(choices), "|".join(choices), read, schema={"enum": list(choices)}, choices=choices
    )


def forms(*patterns: str) -> Kind:
    """One of some phrases, `N` standing for a whole number from 1: `forms("every", "first N steps")`. Read as text."""

    def read(given: Given) -> str:
        pieces = opened(given)
        for pattern in patterns:
            words = pattern.split()
            if len(words) == len(pieces) and all(map(_fits, words, pieces)):
                return " ".join(map(str, pieces))
        text = " ".join(map(str, pieces))
        raise _wrong(given, "is not understood", "write " + " or ".join(f"`{p}`" for p in patterns), text)

    schema = {"type": "string", "pattern": "^(" + "|".join(p.replace("N", "[1-9][0-9]*") for p in patterns) + ")$"}
    return Kind("one of " + ", ".join(patterns), "|".join(patterns), read, schema=schema, choices=patterns)


def _fits(word: str, piece: Piece) -> bool:
    if word != "N":
        return str(piece) == word
    return isinstance(piece, Quantity) and isinstance(piece.number, int) and not piece.unit and piece.number > 0


def words(*choices: str) -> Kind:
    """Some of some words, each once: `[sink, window]`, or a single one. The value is a tuple."""

    def read(given: Given) -> tuple[str, ...]:
        pieces = opened(given)
        if len(pieces) == 1 and isinstance(pieces[0], List):
            pieces = pieces[0].items
        found = [str(piece) for piece in pieces]
        wrong = next((one for one in found if one not in choices), None)
        if wrong is not None or not found:
            reason = f"is not one of {', '.join(choices)}" if found else "names nothing"
            raise _wrong(given, reason, did_you_mean(wrong or "", choices), wrong or "")
        if len(set(found)) < len(found):
            raise _wrong(given, "names one of them twice")
        return tuple(found)

    schema = {"type": ["array", "string"], "items": {"enum": list(choices)}}
    usage = f"[{', '.join(choices)}]"
    return Kind("some of " + ", ".join(choices), usage, read, lambda value: f"[{', '.join(value)}]", schema)


def file_of(noun: str) -> Kind:
    """A word that says what a file holds, and the file: `edges "edges.safetensors"`. The value is the file's path."""

    def read(given: Given) -> str:
        pieces = given.pieces
        if len(pieces) == 1 and isinstance(pieces[0], Text):
            pieces = pieces_of(pieces[0].value) or pieces
        if len(pieces) == 2 and str(pieces[0]) == noun and isinstance(pieces[1], Text | Reference | Word):
            return pieces[1].value if isinstance(pieces[1], Text) else str(pieces[1])
        raise _wrong(given, f"names no {noun}", f'write `{noun} "FILE"`')

    return Kind(f"a file of {noun}", f'{noun} "FILE"', read, lambda path: f"{noun} {Text(path)}")


def whole(at_least: int | None = None, at_most: int | None = None) -> Kind:
    """A whole number within bounds, both included."""

    def read(given: Given) -> int:
        quantity = _quantity(given, "a whole number")
        if quantity.measure != "number" or quantity.value != int(quantity.value):
            raise _wrong(given, "is not a whole number")
        _within(given, quantity.value, at_least, at_most)
        return int(quantity.value)

    limits = {"minimum": at_least, "maximum": at_most}
    schema = {"type": "integer", **{key: value for key, value in limits.items() if value is not None}}
    return Kind("a whole number", "N", read, schema=schema)


def number(at_least: float | None = None, at_most: float | None = None) -> Kind:
    """A number within bounds, both included; `66%` is 0.66."""

    def read(given: Given) -> float:
        value = float(_quantity(given, "a number").value)
        _within(given, value, at_least, at_most)
        return value

    return Kind("a number", "NUMBER", read, lambda value: str(Quantity(value)), schema={"type": ["number", "string"]})


def _within(given: Given, value: float, at_least: float | None, at_most: float | None) -> None:
    if at_least is not None and value < at_least:
        raise _wrong(given, f"is less than {at_least}")
    if at_most is not None and value > at_most:
        raise _wrong(given, f"is more than {at_most}")


def _quantity(given: Given, wanted: str) -> Quantity:
    pieces = opened(given)
    if len(pieces) != 1 or not isinstance(pieces[0], Quantity):
        raise _wrong(given, f"is not {wanted}")
    return pieces[0]


def _read_quantity(given: Given) -> Quantity:
    return _quantity(given, "a quantity such as `1.02x`, `66%`, `20ms`")


def _read_boolean(given: Given) -> bool:
    text = str(given)
    if text not in ("true", "false", "yes", "no"):
        raise _wrong(given, "is neither true nor false")
    return text in ("true", "yes")


def _read_text(given: Given) -> str:
    return " ".join(piece.value if isinstance(piece, Text) else str(piece) for piece in given.pieces)


def _show_text(value: str) -> str:
    pieces = pieces_of(value)
    plain = pieces and " ".join(map(str, pieces)) == value and not any(isinstance(piece, Text) for piece in pieces)
    return value if plain else str(Text(value))


def _read_reference(given: Given) -> Reference:
    piece = given.pieces[0]
    if len(given.pieces) > 1:
        raise _wrong(given, "is not one reference", "write one, such as `zoo:digits-dit`; quote a path that has spaces")
    if isinstance(piece, Reference):
        return piece
    if isinstance(piece, Word | Text):
        text = piece.text if isinstance(piece, Word) else piece.value
        scheme, colon, path = text.partition(":")
        named = colon and scheme.replace("-", "").replace(".", "").replace("_", "").isalnum()
        return Reference(scheme if named else "", path if named else text, span=piece.span)
    raise _wrong(given, "is not a reference", "write for example `zoo:digits-dit`, `diffusers:PATH` or `./folder`")


def _show_reference(reference: Reference) -> str:
    text = str(reference)
    return text if len(pieces_of(text) or ()) == 1 else str(Text(text))


def _read_selector(given: Given) -> Selector:
    return selector_of(given.pieces, given.phrases, given.span)


def _show_selector(selector: Selector) -> str:
    return selector.text or str(selector)


def _read_searched(given: Given) -> Share:
    return Share() if str(given) == AUTO else _read_share(given)


def _read_share(given: Given) -> Share:
    quantity = _quantity(given, "a percentage or a count")
    if quantity.number < 0:
        raise _wrong(given, "is negative", "a share is 0% to 100%, or a count", code="S109")
    if quantity.unit == "%":
        if quantity.number > 100:
            raise _wrong(given, "is more than everything", "a share is at most 100%", code="S109")
        return Share(fraction=Fraction(str(quantity.number)) / 100)
    if quantity.unit or not isinstance(quantity.number, int):
        percent = Quantity(round(quantity.number * 100, 10), "%")
        help = f"did you mean `{percent}`?" if not quantity.unit and 0 < quantity.number < 1 else ""
        raise _wrong(given, "is neither a percentage nor a whole count", help, code="S109")
    return Share(count=quantity.number)


def _wrong(given: Given, reason: str, help: str = "", text: str = "", code: str = "S107") -> SpecError:
    return SpecError(f"`{text or given}` {reason}", code=code, span=given.span, help=help)


SHARE = Kind("a percentage or a count", "SHARE", _read_share, schema={"type": ["string", "integer"]})
SEARCHED = Kind("a percentage, a count or auto", "SHARE", _read_searched, schema={"type": ["string", "integer"]})
SELECTOR = Kind("a selector", "SELECTOR", _read_selector, _show_selector)
REFERENCE = Kind("a reference", "REFERENCE", _read_reference, _show_reference)
TEXT = Kind("text", "TEXT", _read_text, _show_text)
QUANTITY = Kind("a quantity", "QUANTITY", _read_quantity, schema={"type": ["string", "number"]})
BOOLEAN = Kind("true or false", "true|false", _read_boolean, lambda value: str(value).lower(), {"type": "boolean"})
TYPES = {
    int: whole(),
    float: number(),
    bool: BOOLEAN,
    str: TEXT,
    Selector: SELECTOR,
    Reference: REFERENCE,
    Quantity: QUANTITY,
    Share: SHARE,
}
