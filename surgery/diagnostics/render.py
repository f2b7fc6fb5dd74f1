"""Diagnostics as a person reads them (full, concise) and as a program does (json)."""

import unicodedata
from collections.abc import Iterable, Sequence

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.source import Span

Piece = tuple[str, str]  # text and its style
MOST = 20
WIDTH = 100
TAB = 4
STYLES = {
    "error": "bold red",
    "warning": "bold yellow",
    "message": "bold",
    "frame": "blue",
    "place": "cyan",
    "note": "dim",
    "help": "green",
    "": "",
}


def render(diagnostics: Iterable[Diagnostic], style: str = "full", color: bool = False) -> str:
    """All diagnostics as one text that ends with a line end. `style` is full, concise or json."""
    diagnostics = tuple(diagnostics)
    if style == "json":
        import json

        return json.dumps(document(diagnostics), ensure_ascii=False, indent=2) + "\n"
    shape = {"full": full, "concise": concise}[style]
    shown = [shape(diagnostic) for diagnostic in diagnostics[:MOST]]
    if len(diagnostics) > MOST:
        shown.append([(f"… and {len(diagnostics) - MOST} more\n", "note")])
    between: list[Piece] = [("\n", "")] if style == "full" else []
    pieces = [piece for index, one in enumerate(shown) for piece in ([*between, *one] if index else one)]
    return _colored(pieces) if color else "".join(text for text, _ in pieces)


def document(diagnostics: Iterable[Diagnostic]) -> dict:
    """The JSON document of diagnostics, `surgery.diagnostics/1`."""
    return {"format": "surgery.diagnostics/1", "diagnostics": [as_dict(one) for one in diagnostics]}


def as_dict(diagnostic: Diagnostic) -> dict:
    """One diagnostic as JSON data; lines and columns count from 1, the end is excluded."""
    told = {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "label": diagnostic.label,
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
    }
    span = diagnostic.span
    if span is not None:
        line, column = span.source.position(span.start)
        end_line, end_column = span.source.position(span.end)
        told |= {"file": span.source.name, "line": line, "column": column}
        told |= {"end_line": end_line, "end_column": end_column}
    return told


def concise(diagnostic: Diagnostic) -> list[Piece]:
    """`file:line:column: error[S104]: message`."""
    place: list[Piece] = [(f"{diagnostic.span.place}: ", "place")] if diagnostic.span else []
    return [*place, *_head(diagnostic)]


def full(diagnostic: Diagnostic) -> list[Piece]:
    """The message, the line it is about with a caret, then notes and help."""
    pieces = _head(diagnostic)
    gutter = "  "
    if diagnostic.span is not None:
        gutter = " " * (len(str(diagnostic.span.source.position(diagnostic.span.start)[0])) + 2)
        pieces += _snippet(diagnostic.span, diagnostic, gutter)
    for note in diagnostic.notes:
        pieces += [(f"{gutter}= note: ", "frame"), (f"{note}\n", "")]
    if diagnostic.help:
        pieces += [(f"{gutter}= help: ", "frame"), (f"{diagnostic.help}\n", "help")]
    return pieces


def _head(diagnostic: Diagnostic) -> list[Piece]:
    code = f"[{diagnostic.code}]" if diagnostic.code else ""
    return [(f"{diagnostic.severity}{code}", diagnostic.severity), (f": {diagnostic.message}\n", "message")]


def _snippet(span: Span, diagnostic: Diagnostic, gutter: str) -> list[Piece]:
    number, column = span.source.position(span.start)
    line = span.source.line(number)
    length = max(1, min(span.end, span.start + len(line) - column + 1) - span.start)
    shown, before, marked = _window(line, column - 1, length)
    under = " " * before + "^" * marked
    return [
        (f"{gutter[:-1]}--> ", "frame"),
        (f"{span.place}\n", "place"),
        (f"{gutter}|\n", "frame"),
        (f" {number} |{' ' if shown else ''}", "frame"),
        (f"{shown}\n", ""),
        (f"{gutter}| ", "frame"),
        (f"{under}{' ' + diagnostic.label if diagnostic.label else ''}\n", diagnostic.severity),
    ]


def _window(line: str, start: int, length: int) -> tuple[str, int, int]:
    """The part of a line that is shown, and the columns before and under its mark."""
    head, mark, tail = line[:start], line[start : start + length], line[start + length :]
    if len(line) > WIDTH:
        mark = mark if len(mark) <= WIDTH // 2 else mark[: WIDTH // 2] + "…"
        room = (WIDTH - len(mark)) // 2
        head = head if len(head) <= room else "…" + head[-room:]
        tail = tail if len(tail) <= room else tail[:room] + "…"
    shown = _plain(head), _plain(mark), _plain(tail)
    return "".join(shown).rstrip(), _columns(shown[0]), max(1, _columns(shown[1]))


def _plain(text: str) -> str:
    """Tabs as spaces; a character that a terminal would act on as `\\ufffd`."""
    return "".join(" " * TAB if c == "\t" else c if c.isprintable() or c == " " else "\ufffd" for c in text)


def _columns(text: str) -> int:
    """How many terminal columns a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _colored(pieces: Sequence[Piece]) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=True, color_system="standard", no_color=False, highlight=False, soft_wrap=True)
    text = Text.assemble(*((text, STYLES[style]) for text, style in pieces if text))
    with console.capture() as capture:
        console.print(text, end="")
    return capture.get()
