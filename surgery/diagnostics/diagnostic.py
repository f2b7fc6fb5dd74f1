"""What went wrong, as data; rendering is a separate step."""

from dataclasses import dataclass

from surgery.diagnostics.source import Span


@dataclass(frozen=True)
class Diagnostic:
    """One fault.

    `message` is lowercase, short and says what; only `help` says how. `label` stands beside the caret,
    `notes` name other contributing facts. `code` has a page in `diagnostics/codes/`.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    notes: tuple[str, ...] = ()
    help: str = ""
    severity: str = "error"
