"""Colour and output, decided in one place."""

import os
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

COLORS = ("auto", "always", "never")


def use_color(choice: str, stream: IO[str]) -> bool:
    """Whether to colour what goes to a stream: as chosen; by itself only on a terminal and without NO_COLOR."""
    if choice in ("always", "never"):
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(args: Any, stream: IO[str]) -> "Console":
    """A rich console on a stream that obeys `--color`."""
    from rich.console import Console

    color = use_color(args.color, stream)
    return Console(file=stream, force_terminal=color or None, no_color=not color, highlight=False, soft_wrap=True)


def print_json(document: dict) -> None:
    """One document on stdout; it names its `format`."""
    import json

    print(json.dumps(document, ensure_ascii=False, indent=2))
