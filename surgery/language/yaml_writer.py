"""A spec as YAML, comments kept. Reading it back gives the same tree."""

import re

from surgery.language.tree import Clause, List, Phrase, Piece, Setting, Spec, Text

HEADERS = ("model", "data")
PLAIN = re.compile(r"(?:\.{0,2}/)?[^\W_](?:[^\W]|[ ./%<>=~+-]|:(?=[^\s:]))*(?<! )")
NULLS = ("null",)


def write_yaml(spec: Spec) -> str:
    """The spec as YAML: `model` and `data` first, then `steps`, one key for each phrase and setting."""
    lines: list[str] = []
    clauses = list(spec.clauses)
    seen: set[str] = set()
    while clauses and clauses[0].verb.text in set(HEADERS) - seen and (clauses[0].pieces or clauses[0].tails):
        clause = clauses.pop(0)
        seen.add(clause.verb.text)
        rest = str(clause).removeprefix(f"{clause.verb} ")
        lines += [*clause.above, f"{clause.verb}: {scalar(rest)}{_beside(clause)}"]
    if clauses:
        blank = clauses[0].above[:1] == ("",)
        lines += [*([""] if blank else []), "steps:"]
        for index, clause in enumerate(clauses):
            above = clause.above[1:] if blank and not index else clause.above
            lines += [*(f"  {line}" if line else "" for line in above), *_step(clause)]
    return "".join(f"{line}\n" for line in [*lines, *spec.below])


def _step(clause: Clause) -> list[str]:
    pairs = [*_phrases(clause), *((setting.key, _value(setting)) for setting in clause.settings)]
    keys = [clause.verb.text, *(key for key, _ in pairs)]
    head = " ".join(map(str, (*clause.pieces, *([clause.comparison] if clause.comparison else []))))
    if not head or len(set(keys)) < len(keys):
        return [f"  - {scalar(str(clause))}{_beside(clause)}"]
    first = f"  - {clause.verb}: {scalar(head)}{_beside(clause)}"
    return [first, *(f"    {key}: {value}" for key, value in pairs)]


def _phrases(clause: Clause) -> list[tuple[str, str]]:
    """Prepositions and what follows; one that comes again joins the phrase before it."""
    groups: dict[str, list[Phrase]] = {}
    for phrase in clause.phrases:
        key = phrase.preposition if phrase.preposition not in groups else next(reversed(groups))
        groups.setdefault(key, []).append(phrase)
    return [(key, scalar(" ".join(map(str, group)).removeprefix(f"{key} "))) for key, group in groups.items()]


def _value(setting: Setting) -> str:
    piece: Piece = setting.value
    if isinstance(piece, List):
        return f"[{', '.join(scalar(str(item)) for item in piece.items)}]"
    if isinstance(piece, Text) and PLAIN.fullmatch(piece.value) and " " in piece.value:
        return piece.value
    return scalar(str(piece))


def scalar(text: str) -> str:
    """A YAML scalar that holds `text`: plain where that is safe, else in single quotes."""
    if PLAIN.fullmatch(text) and text not in NULLS:
        return text
    return "'" + text.replace("'", "''") + "'"


def _beside(clause: Clause) -> str:
    return f"  {clause.beside}" if clause.beside else ""
