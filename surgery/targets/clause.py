"""What every cut shares: the clause it comes from, and what that clause must not say."""

from collections.abc import Mapping
from typing import Any

from surgery.diagnostics import RefusalError
from surgery.operations import Phase, sentence

SEARCHED = "auto: as much as the requirements let, found when the spec is applied"
"""The note of a share that is searched for."""


class OfClause:
    """A work whose `options` are the operation that asked for it."""

    options: Any

    @property
    def phase(self) -> Phase:
        return self.options.phase

    @property
    def clause(self) -> str:
        return str(self.options.clause or sentence(self.options))

    @property
    def place(self) -> str:
        return self.options.clause.place if self.options.clause else ""


def refuse_options(operation: Any, wrong: Mapping[str, bool], what: str, help: str) -> None:
    """Raise S318 for the first option, in order, that is wrong for what is cut."""
    name = next((name for name, bad in wrong.items() if bad), None)
    if name is not None:
        raise RefusalError(
            f"`{name}={getattr(operation, name)}` is not for {what}",
            code="S318",
            span=operation.clause.span if operation.clause else None,
            help=help,
        )
