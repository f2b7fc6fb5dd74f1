"""From a clause to an operation: every piece finds its field, or is a fault."""

from dataclasses import dataclass, field, replace
from typing import Any

from surgery.diagnostics import Diagnostic, Span, SpecError, SurgeryError, did_you_mean, nearest
from surgery.language import Clause, Quantity, Word
from surgery.language.selector import CONTINUES
from surgery.language.tree import PREPOSITIONS, List, Phrase, Piece, Range
from surgery.operations.describe import brief
from surgery.operations.fields import Field, fields_of
from surgery.operations.kinds import AUTO, SELECTOR, Given
from surgery.operations.registry import find, verbs


@dataclass(frozen=True)
class Bound:
    """An operation, or the faults that keep a clause from being one."""

    operation: Any | None
    faults: tuple[Diagnostic, ...] = ()


def bind(clause: Clause, kind: type | None = None) -> Bound:
    """The operation a clause says. `kind` is its class; without it the verb is looked up."""
    try:
        kind = kind or find(clause.verb.text)
    except SurgeryError as error:
        return Bound(None, error.diagnostics)
    if kind is None:
        return Bound(None, (_unknown_verb(clause),))
    binding = Binding(clause, kind)
    values = binding.values()
    if binding.faults:
        return Bound(None, tuple(binding.faults))
    made = kind(clause=clause, **values)
    faults = tuple(made.conflicts())
    return Bound(None if faults else made, faults)


def _unknown_verb(clause: Clause) -> Diagnostic:
    verb = clause.verb
    help = did_you_mean(verb.text, verbs()) or "`surgery explain` lists the operations"
    return Diagnostic("S103", f"unknown operation `{verb.text}`", verb.span, help=help)


@dataclass
class Binding:
    """One clause on its way to an operation."""

    clause: Clause
    kind: type
    faults: list[Diagnostic] = field(default_factory=list)
    given: dict[str, Given] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The fields' values as read; `faults` holds what went wrong."""
        self.fields = fields_of(self.kind)
        self._phrases()
        self._settings()
        self._comparison()
        left = self._pieces()
        missing = [one for one in self.fields if one.required and one.name not in self.given]
        self._leftover(left, missing)
        for one in missing:
            self._missing(one)
        return {one.name: value for one in self.fields if one.name in self.given for value in self._read(one)}

    def _phrases(self) -> None:
        claimed = {name: one for one in self.fields for name in one.names if name in PREPOSITIONS}
        selector = next((one for one in self.fields if one.syntax.kind is SELECTOR), None)
        parts: list[Phrase] = []
        for phrase in self.clause.phrases:
            own = claimed.get(phrase.preposition)
            again = own is not None and own is selector and own.name in self.given
            if selector and phrase.preposition in CONTINUES and (own is None or again):
                parts.append(phrase)
            elif own:
                self._give(own, phrase.pieces, _pieces_span(phrase))
            else:
                help = did_you_mean(phrase.preposition, claimed) or f"write `{brief(self.kind)}`"
                self._fault("S105", f"`{self.clause.verb}` takes no `{phrase.preposition}`", phrase.span, help)
        self.parts = tuple(parts)

    def _settings(self) -> None:
        names = {name: one for one in self.fields for name in one.names}
        for setting in self.clause.settings:
            own = names.get(setting.key)
            if own and own.syntax.form != "comparison":
                self._give(own, (setting.value,), setting.value.span or setting.span)
                continue
            help = did_you_mean(setting.key, names)
            self._fault("S105", f"`{self.clause.verb}` has no setting `{setting.key}`", setting.span, help)

    def _comparison(self) -> None:
        if self.clause.comparison is None:
            return
        own = next((one for one in self.fields if one.syntax.form == "comparison"), None)
        if own:
            self.given[own.name] = Given((), self.clause.comparison.span)
        else:
            self._fault("S105", f"`{self.clause.verb}` takes no comparison", self.clause.comparison.span)

    def _pieces(self) -> list[Piece]:
        """Give the first words to their fields; what is left over is returned."""
        left = list(self.clause.pieces)
        for one in self.fields:
            if one.syntax.form == "word":
                self._take(one, left, [piece for piece in left if _is_choice(piece, one)])
            elif one.syntax.form == "share":
                plain = [piece for piece in left if self._slip(left[0]) or not _is_index(piece, left)]
                numbers = [piece for piece in plain if isinstance(piece, Quantity) or str(piece) == AUTO]
                self._take(one, left, sorted(numbers, key=lambda piece: getattr(piece, "unit", None) != "%")[:1])
        subject = next((one for one in self.fields if one.syntax.form == "subject"), None)
        if subject and left:
            self._give(subject, tuple(left), _joined(left))
            left = []
        return self._bare(left)

    def _bare(self, left: list[Piece]) -> list[Piece]:
        """A count and numbers need no preposition: `prune 2 layers`, `prune layers [3, 5]`, all of what is numbered."""
        share = next((one for one in self.fields if one.syntax.form == "share"), None)
        target = next((one for one in self.fields if one.syntax.form == "after" and one.syntax.kind is SELECTOR), None)
        if not (left and share and target):
            return left
        numbered = any(_is_index(piece, left) for piece in left)
        counted = any(getattr(piece, "unit", None) == "" for piece in self._given_to(share))
        if not (numbered or counted) or self._misspelt(left[0], target):
            return left
        if target.name in self.given:
            own = next(phrase for phrase in self.clause.phrases if phrase.preposition in target.names)
            self.parts = (own, *self.parts)
            del self.given[target.name]
        self._give(target, tuple(left), _joined(left))
        if numbered and share.name not in self.given:
            self.given[share.name] = Given((Quantity(100, "%"),), _joined(left))
        return []

    def _given_to(self, one: Field) -> tuple[Piece, ...]:
        return self.given[one.name].pieces if one.name in self.given else ()

    def _misspelt(self, piece: Piece, target: Field) -> str | None:
        """Whether a word is rather a slip of the preposition, or of a keyword where the preposition is there."""
        if target.name not in self.given:
            return nearest(str(piece), [target.syntax.preposition])
        return self._slip(piece)

    def _slip(self, piece: Piece) -> str | None:
        """The keyword that a word is a slip of; the plural of one is a noun."""
        choices = [choice for one in self.fields if one.syntax.form == "word" for choice in one.syntax.kind.choices]
        return None if str(piece).removesuffix("s") in choices else nearest(str(piece), choices)

    def _take(self, one: Field, left: list[Piece], found: list[Piece]) -> None:
        for piece in found:
            left.remove(piece)
            self._give(one, (piece,), piece.span)

    def _give(self, one: Field, pieces: tuple[Piece, ...], span: Span | None) -> None:
        if one.name in self.given:
            before = self.given[one.name].span
            notes = (f"first at {before.place}",) if before else ()
            fault = Diagnostic("S106", f"`{one.names[0]}` is given twice", span, notes=notes, help="keep one of them")
            self.faults.append(fault)
        else:
            self.given[one.name] = Given(pieces, span)

    def _leftover(self, left: list[Piece], missing: list[Field]) -> None:
        """Words no field takes. A missing phrase explains them best: `prune 66% class embeddings` lacks its `of`."""
        if not left:
            return
        lacking = next((one for one in missing if one.syntax.form == "after"), None)
        if lacking:
            missing.remove(lacking)
            preposition = lacking.syntax.preposition
            misspelt = nearest(str(left[0]), [preposition])
            help = f"did you mean `{misspelt}`?" if misspelt else f"write `{preposition} {' '.join(map(str, left))}`"
            message = f"`{self.clause.verb}` needs `{preposition} {lacking.syntax.kind.usage}`"
            return self._fault("S108", message, left[0].span if misspelt else _joined(left), help)
        choices = [choice for one in self.fields if one.syntax.form == "word" for choice in one.syntax.kind.choices]
        for piece in left:
            help = did_you_mean(str(piece), choices) or f"write `{brief(self.kind)}`"
            self._fault("S114", f"`{self.clause.verb}` does not understand `{piece}`", piece.span, help)

    def _missing(self, one: Field) -> None:
        form, kind = one.syntax.form, one.syntax.kind
        wanted = {
            "after": f"`{one.syntax.preposition} {kind.usage if kind else ''}`",
            "setting": f"`{one.name}=…`",
            "comparison": "a comparison such as `<= 1.02x`",
            "share": "a share such as `66%`",
        }.get(form, kind.name if kind else one.name)
        if any(fault.code == "S114" for fault in self.faults) and form in ("word", "share", "subject"):
            return
        span = self.clause.span
        self._fault("S108", f"`{self.clause.verb}` needs {wanted}", span, f"write `{brief(self.kind)}`")

    def _read(self, one: Field) -> list[Any]:
        """The field's value as a list of one; empty where it was a fault."""
        if one.syntax.form == "comparison":
            return [self.clause.comparison]
        given = self.given[one.name]
        if one.syntax.kind is SELECTOR:
            given = Given(given.pieces, _over(given.span, self.parts), self.parts)
        try:
            return [one.syntax.kind.read(given)]
        except SpecError as error:
            self.faults += [fault if fault.span else _placed(fault, given.span) for fault in error.diagnostics]
            return []

    def _fault(self, code: str, message: str, span: Span | None, help: str = "") -> None:
        self.faults.append(Diagnostic(code, message, span, help=help))


def _is_choice(piece: Piece, one: Field) -> bool:
    return isinstance(piece, Word) and piece.text in one.syntax.kind.choices


def _is_index(piece: Piece, pieces: list[Piece]) -> bool:
    """Whether a piece numbers the noun before it: `layer 3`, `layers 4..11`, `layers [3, 5]`."""
    before = pieces[: next(place for place, one in enumerate(pieces) if one is piece)]
    number = isinstance(piece, List | Range) or isinstance(piece, Quantity) and not piece.unit
    return number and any(isinstance(one, Word) for one in before)


def _placed(fault: Diagnostic, span: Span | None) -> Diagnostic:
    return replace(fault, span=span)


def _pieces_span(phrase: Phrase) -> Span | None:
    return _joined(phrase.pieces) or phrase.span


def _joined(pieces) -> Span | None:
    spans = [piece.span for piece in pieces if piece.span]
    return Span(spans[0].source, spans[0].start, max(span.end for span in spans)) if spans else None


def _over(span: Span | None, phrases: tuple[Phrase, ...]) -> Span | None:
    """The span of a selector with the phrases that directly follow it."""
    for phrase in phrases:
        if span and phrase.span and not phrase.span.source.text[span.end : phrase.span.start].strip():
            span = Span(span.source, span.start, phrase.span.end)
    return span
