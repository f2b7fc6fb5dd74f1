"""The one exception family of the package."""

from collections.abc import Iterable

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.source import Span

DONE, FAULTS, USAGE, UNPROVEN, STALE, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130


class SurgeryError(Exception):
    """One or more faults a person can mend. `exit_code` is what the command line ends with."""

    exit_code = FAULTS

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "S001",
        span: Span | None = None,
        label: str = "",
        notes: Iterable[str] = (),
        help: str = "",
        diagnostics: Iterable[Diagnostic] = (),
    ):
        one = Diagnostic(code, message, span, label, tuple(notes), help)
        self.diagnostics = tuple(diagnostics) or (one,)
        super().__init__(message or self.diagnostics[0].message)

    def __str__(self) -> str:
        """Every fault with its place, notes and cure, as a traceback in Python shows it."""
        return "\n".join(map(_told, self.diagnostics))


def _told(one: Diagnostic) -> str:
    lines = [f"error[{one.code}]: {one.message}"]
    lines += [f"  --> {one.span.place}"] if one.span else []
    lines += [f"  = note: {note}" for note in one.notes]
    lines += [f"  = help: {one.help}"] if one.help else []
    return "\n".join(lines)


class SpecError(SurgeryError):
    """The spec is not well-formed; every fault of the file is in `diagnostics`."""


class CaptureError(SurgeryError):
    """A model cannot be captured as a graph."""


class RefusalError(SurgeryError):
    """An operation refuses a site; the message names the culprit."""


class UnprovenError(SurgeryError):
    """A proof or a `require` did not hold; nothing was written. `report` is what was measured by then."""

    exit_code = UNPROVEN
    report: dict | None = None


class StalePlanError(SurgeryError):
    """A saved plan no longer fits its model or spec."""

    exit_code = STALE


class BundleError(SurgeryError):
    """A bundle is missing, damaged, foreign or unsafe."""
