"""Text to clauses, through the lark grammar. A broken clause is reported and the others are still read."""

import re
from collections.abc import Callable

from lark import Token, Tree
from lark.exceptions import UnexpectedInput

from surgery.diagnostics import Diagnostic, Span
from surgery.language.faults import explain
from surgery.language.grammar import blanked, grammar
from surgery.language.quantities import UNITS, split_number
from surgery.language.tree import (
    PREPOSITIONS,
    Clause,
    Comparison,
    List,
    Phrase,
    Piece,
    Quantity,
    Range,
    Ratio,
    Reference,
    Setting,
    Text,
    Word,
)

Locate = Callable[[int, int], Span | None]
OPERATORS = {"≤": "<=", "≥": ">="}
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U(00[01][0-9a-fA-F]{5})|(.))")
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
MOST_FAULTS = 50


def clauses_of(text: str, locate: Locate) -> tuple[list[Clause], list[Diagnostic]]:
    """All well-formed clauses of a text and a fault for each that is not.

    `locate` turns character positions of `text` into a span of what the person wrote.
    """
    faults: list[Diagnostic] = []
    while len(faults) < MOST_FAULTS:
        try:
            tree = grammar().parse(text)
        except UnexpectedInput as error:
            fault, broken = explain(error, text, locate)
            faults.append(fault)
            text = blanked(text, *broken)
            continue
        builder = Builder(locate)
        built = [(len(builder.faults), builder.clause(child), len(builder.faults)) for child in tree.children]
        return [clause for before, clause, after in built if before == after], [*faults, *builder.faults]
    return [], faults


class Builder:
    """Lark's tree to ours. What is well-formed but meaningless (a unit, a range) is collected in `faults`."""

    def __init__(self, locate: Locate):
        self.locate = locate
        self.faults: list[Diagnostic] = []

    def clause(self, tree: Tree) -> Clause:
        verb, *rest = tree.children
        phrases: list[Phrase] = []
        settings: list[Setting] = []
        comparisons: list[Comparison] = []
        pieces: list[Piece] = []
        for child in rest:
            if isinstance(child, Token) or child.data == "list":
                pieces.append(self.piece(child))
            elif child.data == "phrase":
                phrases.append(self.phrase(child))
            elif child.data == "comparison":
                comparisons.append(self.comparison(child))
            else:
                self._setting(child, phrases, settings)
        for extra in comparisons[1:]:
            self._fault("S101", "a clause has one comparison", extra.span, help="write a clause for each")
        return Clause(
            Word(str(verb), span=self._span(verb)),
            tuple(pieces),
            tuple(phrases),
            comparisons[0] if comparisons else None,
            tuple(settings),
            span=self._span(tree),
        )

    def phrase(self, tree: Tree) -> Phrase:
        preposition, *pieces = tree.children
        return Phrase(str(preposition), tuple(map(self.piece, pieces)), span=self._span(tree))

    def comparison(self, tree: Tree) -> Comparison:
        operator, value = tree.children
        return Comparison(OPERATORS.get(str(operator), str(operator)), self.piece(value), span=self._span(tree))

    def _setting(self, tree: Tree, phrases: list[Phrase], settings: list[Setting]) -> None:
        key, value = str(tree.children[0]), self.piece(tree.children[-1])
        if key in PREPOSITIONS:
            phrases.append(Phrase(key, (value,), span=self._span(tree)))
        else:
            settings.append(Setting(key, value, span=self._span(tree)))

    def piece(self, node: Token | Tree) -> Piece:
        if isinstance(node, Tree):
            return List(tuple(map(self.piece, node.children)), span=self._span(node))
        return getattr(self, f"_{node.type.lower()}")(str(node), self._span(node))

    def _word(self, text: str, span: Span) -> Word:
        return Word(text, span=span)

    def _string(self, text: str, span: Span) -> Text:
        return Text(unquoted(text), span=span)

    def _reference(self, text: str, span: Span) -> Reference:
        scheme, colon, path = text.partition(":")
        if not colon or not re.fullmatch(r"[^\W\d][\w.+-]*", scheme):
            scheme, path = "", text
        return Reference(scheme, unquoted(path) if path.startswith('"') else path, span=span)

    def _ratio(self, text: str, span: Span) -> Ratio:
        kept, total = map(int, text.split(":"))
        if not 0 < kept <= total:
            self._fault("S112", f"`{text}` is no pattern", span, "kept : out of how many", "write for example `2:4`")
        return Ratio(kept, total, span=span)

    def _range(self, text: str, span: Span) -> Range:
        first, last = map(int, text.split(".."))
        if first > last:
            self._fault("S112", f"the range `{text}` runs backwards", span, help=f"write `{last}..{first}`")
        return Range(first, last, span=span)

    def _quantity(self, text: str, span: Span) -> Quantity:
        try:
            number, unit = split_number(text)
        except ValueError:
            self._fault("S112", f"the number `{text[:40]}` is too large", span)
            return Quantity(0, span=span)
        if unit not in UNITS:
            known = [known for known in UNITS if known and known.casefold() == unit.casefold()]
            help = f"did you mean `{known[0]}`?" if known else f"units are {', '.join(filter(None, UNITS))}"
            self._fault("S112", f"unknown unit `{unit}`", span, help=help)
            return Quantity(number, span=span)
        return Quantity(number, unit, span=span)

    def _span(self, node: Token | Tree) -> Span | None:
        if isinstance(node, Token):
            return self.locate(node.start_pos, node.end_pos)
        return self.locate(node.meta.start_pos, node.meta.end_pos)

    def _fault(self, code: str, message: str, span: Span | None, label: str = "", help: str = "") -> None:
        self.faults.append(Diagnostic(code, message, span, label, help=help))


def unquoted(text: str) -> str:
    """The value of a quoted string. A backslash before an ordinary letter is itself, as in a pattern."""
    return ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    if code:
        return chr(int(code, 16)) if int(code, 16) <= 0x10FFFF else match[0]
    return ESCAPED.get(match[3], match[0])
