"""The lark parser, and where clauses and comments lie in a text that may not parse."""

import re
from functools import cache

from lark import Lark

from surgery.layout import shelf


@cache
def grammar() -> Lark:
    """The parser of `grammar/surgery.lark`, built on first use (about 20 ms)."""
    return Lark(
        (shelf("grammar") / "surgery.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        propagate_positions=True,
        maybe_placeholders=False,
    )


@cache
def _breaks() -> re.Pattern[str]:
    """What ends a clause, and what may hold such a sign without ending it."""
    continuation = next(t for t in grammar().terminals if t.name == "CONTINUATION").pattern.value
    return re.compile(
        rf'(?P<held>"(?:\\.|[^"\\\n])*"|\[[^\[\]#;"]*\]|{continuation})|(?P<comment>#[^\n]*)|(?P<end>[;\n])'
    )


def comments_of(text: str) -> list[tuple[int, int]]:
    """Start and end of every `#` comment outside strings."""
    return [match.span() for match in _breaks().finditer(text) if match["comment"]]


def before_comment(text: str) -> str:
    """The text without the comments and spaces it ends with."""
    for start, end in reversed(comments_of(text)):
        if text[end:].strip():
            break
        text = text[:start]
    return text.rstrip()


def blanked(text: str, start: int, end: int) -> str:
    """The text with the clauses around `start` to `end` made of spaces, so that all other positions stay."""
    first, last = 0, len(text)
    for match in _breaks().finditer(text):
        if not match["end"]:
            continue
        if match.start() >= end:
            last = match.start()
            break
        if match.end() <= start:
            first = match.end()
    return text[:first] + " " * (last - first) + text[last:]
