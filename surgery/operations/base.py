"""What every operation is: a frozen dataclass whose fields are its syntax, with a verb and a phase."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar, Protocol, dataclass_transform

from surgery.diagnostics import Diagnostic, SurgeryError
from surgery.language import Clause
from surgery.operations.fields import SYNTAX, after, comparison, setting, share, subject, word


class Phase(IntEnum):
    """When an operation runs. Within a phase the order of the spec holds."""

    ANALYZE = 1
    SHRINK = 2
    SPARSIFY = 3
    ROUTE = 4
    HEAL = 5
    LOWER = 6
    VERIFY = 7
    EMIT = 8


class Operation(Protocol):
    """What `@operation` makes of a class. Fields beside `clause` are the operation's own."""

    verb: ClassVar[str]
    phase: ClassVar[Phase | None]
    clause: Clause | None

    def conflicts(self) -> Iterable[Diagnostic]:
        """Contradictions among the operation's own fields, known without a model."""
        ...


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(word, share, subject, comparison, after, setting)
)
def operation(cls: type) -> type:
    """Make a class an operation and register its verb.

    The verb is the class's name in lower case (`CutHeads` → `cut-heads`) unless the class sets `verb`. The class
    becomes a frozen dataclass with one more field, `clause`: the sentence it was written as, or None.
    Raises SurgeryError (S120) where another class owns the verb, (S121) where the class is no operation.
    """
    from surgery.operations.registry import register

    return register(define(cls))


def define(cls: type) -> type:
    """Make a class an operation without registering it."""
    _demand(isinstance(getattr(cls, "phase", None), Phase | None) and hasattr(cls, "phase"), cls, "it has no `phase`")
    _demand(cls.__doc__, cls, "it has no docstring")
    cls.__annotations__ = {**inspect.get_annotations(cls), "clause": Clause | None}
    cls.clause = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)
    if "verb" not in cls.__dict__:
        cls.verb = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()
    if not hasattr(cls, "conflicts"):
        cls.conflicts = _no_conflicts
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    for field in dataclasses.fields(made):
        known = field.name == "clause" or SYNTAX in field.metadata
        _demand(known, cls, f"its field `{field.name}` says no syntax; use word, share, subject, after, setting")
    return made


def _no_conflicts(self: Any) -> Iterable[Diagnostic]:
    return ()


def _demand(holds: Any, cls: type, why: str) -> None:
    if not holds:
        raise SurgeryError(f"`{cls.__qualname__}` is not an operation: {why}", code="S121")
