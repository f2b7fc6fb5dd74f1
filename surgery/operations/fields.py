"""The fields of an operation are its syntax. Each function here makes one dataclass field."""

import dataclasses
from dataclasses import MISSING, dataclass
from typing import Any

from surgery.operations.kinds import SEARCHED, Kind, choice, kind_of

REQUIRED: Any = MISSING
SYNTAX = "surgery.syntax"


@dataclass(frozen=True)
class Syntax:
    """How a field is written. `form` is word, share, subject, comparison, after or setting."""

    form: str
    kind: Kind | None
    preposition: str = ""
    doc: str = ""


@dataclass(frozen=True)
class Field:
    """One field of an operation: its name, its syntax, its default (REQUIRED where it has none)."""

    name: str
    syntax: Syntax
    default: Any

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def names(self) -> tuple[str, ...]:
        """What may stand before `=`: the preposition, the name."""
        return tuple(dict.fromkeys(filter(None, (self.syntax.preposition, self.name))))


def word(*choices: str, default: Any = REQUIRED, doc: str = "") -> Any:
    """A bare keyword among the first words: `prune tail …`."""
    return _field("word", choice(*choices), default, doc=doc)


def share(default: Any = REQUIRED, doc: str = "") -> Any:
    """How much: a percentage up to 100 %, a whole count or `auto`, among the first words. The value is a `Share`."""
    return _field("share", SEARCHED, default, doc=doc)


def subject(kind: Any, default: Any = REQUIRED, doc: str = "") -> Any:
    """What the operation acts on: the first words that no `word` or `share` takes, e.g. `subject(Selector)`."""
    return _field("subject", kind_of(kind), default, doc=doc)


def comparison(default: Any = REQUIRED, doc: str = "") -> Any:
    """The clause's `<= 1.02x`. The value is the tree's `Comparison`."""
    return _field("comparison", None, default, doc=doc)


def after(preposition: str, *kind: Any, default: Any = REQUIRED, doc: str = "") -> Any:
    """A phrase: `by greedy`, also written `by=greedy`. Give choices or a kind; without either it is a selector."""
    return _field("after", kind_of(*kind), default, preposition, doc)


def setting(*kind: Any, default: Any = REQUIRED, doc: str = "") -> Any:
    """`KEY=value`, the key being the field's name. Give choices or a kind such as `int`, `float`, `bool`, `str`."""
    return _field("setting", kind_of(*kind), default, doc=doc)


def fields_of(operation: Any) -> tuple[Field, ...]:
    """The fields of an operation class or instance, in the order of its definition."""
    return tuple(
        Field(field.name, field.metadata[SYNTAX], field.default)
        for field in dataclasses.fields(operation)
        if SYNTAX in field.metadata
    )


def _field(form: str, kind: Kind | None, default: Any, preposition: str = "", doc: str = "") -> Any:
    return dataclasses.field(default=default, kw_only=True, metadata={SYNTAX: Syntax(form, kind, preposition, doc)})
