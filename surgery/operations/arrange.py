"""A spec's phrases and settings in the order of their operation's fields, for the formatter."""

from dataclasses import replace

from surgery.diagnostics import SurgeryError
from surgery.language import Clause, Phrase, Spec
from surgery.operations.describe import ordered
from surgery.operations.fields import Field, fields_of
from surgery.operations.registry import find


def arranged(spec: Spec) -> Spec:
    """The spec with every clause arranged; a clause of an unknown operation stays as it is."""
    return replace(spec, clauses=tuple(map(_clause, spec.clauses)))


def _clause(clause: Clause) -> Clause:
    try:
        kind = find(clause.verb.text)
    except SurgeryError:
        return clause
    if kind is None:
        return clause
    fields = ordered(fields_of(kind))
    settings = sorted(clause.settings, key=lambda setting: _place(fields, setting.key))
    return replace(clause, phrases=_phrases(clause.phrases, fields), settings=tuple(settings))


def _phrases(phrases: tuple[Phrase, ...], fields: list[Field]) -> tuple[Phrase, ...]:
    """A phrase that is no field's own (`in layers 4..11`) stays behind the one before it."""
    groups: list[list[Phrase]] = []
    seen: set[str] = set()
    for phrase in phrases:
        own = phrase.preposition not in seen and _place(fields, phrase.preposition) < len(fields)
        seen.add(phrase.preposition)
        if own or not groups:
            groups.append([phrase])
        else:
            groups[-1].append(phrase)
    groups.sort(key=lambda group: _place(fields, group[0].preposition))
    return tuple(phrase for group in groups for phrase in group)


def _place(fields: list[Field], name: str) -> int:
    return next((index for index, one in enumerate(fields) if name in one.names), len(fields))
