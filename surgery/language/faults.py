"""What lark could not read, said in the words of the person who wrote it."""

import re
from collections.abc import Callable

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from surgery.diagnostics import Diagnostic, Span
from surgery.language.grammar import before_comment

WORDS = {
    "WORD": "a word",
    "QUANTITY": "a quantity",
    "STRING": "a string",
    "REFERENCE": "a reference",
    "LSQB": "a list",
    "PREPOSITION": "a preposition",
    "COMPARISON": "a comparison",
    "KEY": "key=value",
    "COMMA": "`,`",
    "RSQB": "`]`",
    "EQUAL": "`=`",
}
VALUE = {"WORD", "QUANTITY", "STRING", "REFERENCE"}
ENDS = {"$END", "_NEWLINE", "_SEMICOLON"}
Explained = tuple[Diagnostic, tuple[int, int]]


def explain(error: UnexpectedInput, text: str, locate: Callable[[int, int], Span | None]) -> Explained:
    """A diagnostic for a lark error, and the stretch whose clauses are to be left out."""
    opened = _open_list(error, text)
    if opened is not None:
        help = "close it with `]`"
        return Diagnostic("S102", "this list has no end", locate(opened, opened + 1), help=help), (opened, opened + 1)
    if isinstance(error, UnexpectedCharacters):
        return _characters(error, text, locate)
    if isinstance(error, UnexpectedToken) and error.token.type not in ENDS:
        return _token(error, text, locate)
    return _end(error, text, locate)


def _open_list(error: UnexpectedInput, text: str) -> int | None:
    """Where the list begins that swallowed the lines after it; None for any other fault."""
    if not isinstance(error, UnexpectedToken) or "RSQB" not in (error.accepts or ()):
        return None
    end = len(text) if error.token.type == "$END" else error.token.start_pos
    opened = text.rfind("[", 0, end)
    return opened if error.token.type in ENDS or "\n" in text[opened:end] else None


def _characters(error: UnexpectedCharacters, text: str, locate) -> Explained:
    start = error.pos_in_stream
    start += text.startswith(':"', start)
    if text[start] == '"':
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        help = 'close it with `"` on the same line'
        return Diagnostic("S102", "this string has no end", locate(start, end), help=help), (start, end)
    run = re.compile(r"[^\s;\"\[\],]+").match(text, start)
    end = run.end() if run else start + 1
    wrong = text[start:end]
    diagnostic = Diagnostic(
        "S101", f"cannot read `{_short(wrong)}`", locate(start, end), help=_cure(wrong, text, start)
    )
    return diagnostic, (start, end)


def _cure(wrong: str, text: str, start: int) -> str:
    if wrong.startswith("%"):
        spaced = re.search(r"\d[ \t]+$", text[:start])
        return f"a percent sign follows its number{' without a space' if spaced else ''}: `66%`"
    if wrong.startswith(":"):
        word = re.search(r"[\w-]*$", text[:start])[0]
        return f"no colon is needed: `{word} …`; a YAML spec has `{word}: …` on every line"
    if wrong.startswith("'"):
        return 'strings have double quotes: `"…"`'
    if wrong[0] in "({})":
        return "lists have square brackets: `[3, 5]`"
    if wrong[0].isdigit():
        return "a quantity is a number and a unit, such as `66%`, `1.02x`, `20ms`; a name begins with a letter"
    return ""


def _token(error: UnexpectedToken, text: str, locate) -> Explained:
    token, wanted = error.token, error.accepts or set()
    start, end = token.start_pos, token.end_pos
    span, shown = locate(start, end), _short(str(token))
    if "WORD" in wanted and not wanted & {"QUANTITY", "LSQB"}:
        help = "a clause begins with what to do, such as `prune`"
        return Diagnostic("S101", f"a clause cannot begin with `{shown}`", span, help=help), (start, end)
    if "PREPOSITION" in wanted and token.type in VALUE | {"LSQB", "RANGE", "RATIO"}:
        help = "settings and comparisons come last; write `;` or a new line before the next clause"
        return Diagnostic("S101", f"`{shown}` cannot follow a setting or comparison", span, help=help), (start, end)
    return Diagnostic("S101", f"unexpected `{shown}`", span, f"expected {_expected(wanted)}"), (start, end)


def _end(error: UnexpectedInput, text: str, locate) -> Explained:
    token = getattr(error, "token", None)
    before = before_comment(text[: len(text) if token is None or token.type == "$END" else token.start_pos])
    end = len(before)
    label = f"expected {_expected(getattr(error, 'accepts', None) or set())}"
    return Diagnostic("S101", "the clause ends too early", locate(end, end + 1), label), (end - 1, end)


def _expected(wanted: set[str]) -> str:
    """Terminals in words: a value's many forms are one word here."""
    names = [] if not wanted >= VALUE else ["a value"]
    left = wanted - (VALUE | {"LSQB", "RANGE", "RATIO"}) if names else wanted
    names += [word for terminal, word in WORDS.items() if terminal in left]
    return (
        names[0]
        if len(names) == 1
        else ", ".join(names[:-1]) + f" or {names[-1]}"
        if names
        else "the end of the clause"
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "…"
