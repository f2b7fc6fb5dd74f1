"""What an operation's fields say of it: its usage line, its explanation, the sentence that would make it."""

import inspect
from typing import Any

from surgery.language.tree import quoted
from surgery.operations.fields import Field, fields_of
from surgery.operations.kinds import pieces_of

WIDEST = 44
ORDER = ("word", "share", "subject", "after", "comparison", "setting")


def usage(kind: type) -> str:
    """One line: `prune [tail|head|random] SHARE of SELECTOR [by greedy|…] [scope=shared|per-vector]`."""
    parts = [kind.verb]
    for one in ordered(fields_of(kind)):
        part = _form(one)
        parts.append(part if one.required else f"[{part}]")
    return " ".join(parts)


def brief(kind: type) -> str:
    """The part of the usage line that cannot be left out, and the first words."""
    fields = ordered(fields_of(kind))
    told = [one for one in fields if one.required or one.syntax.form == "word"]
    parts = [_form(one) if one.required else f"[{_form(one)}]" for one in told]
    return " ".join([kind.verb, *parts, *(["…"] if len(told) < len(fields) else [])])


def ordered(fields: tuple[Field, ...]) -> list[Field]:
    """Fields in the order a sentence has them."""
    return sorted(fields, key=lambda one: ORDER.index(one.syntax.form))


def explain(kind: type) -> str:
    """The manual page of an operation: its docstring, usage and fields."""
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", f"usage    {usage(kind)}"]
    if kind.phase is not None:
        lines.append(f"phase    {kind.phase.name.lower()}")
    fields = ordered(fields_of(kind))
    if fields:
        width = max([0, *(len(_form(one)) for one in fields if len(_form(one)) <= WIDEST)])
        lines += ["", "fields", *(line for one in fields for line in _field_lines(one, width))]
    return "\n".join(lines) + "\n"


def _field_lines(one: Field, width: int) -> list[str]:
    form = _form(one)
    default = "required" if one.required else _default(one)
    told = "; ".join(filter(None, (one.syntax.doc, default)))
    if len(form) <= width:
        return [f"  {form:<{width}}  {told}"]
    return [f"  {form}", f"  {'':<{width}}  {told}"]


def _default(one: Field) -> str:
    return "optional" if one.default is None else f"default {_show(one, one.default)}"


def _form(one: Field) -> str:
    kind = one.syntax.kind
    if one.syntax.form == "after":
        return f"{one.syntax.preposition} {kind.usage}"
    if one.syntax.form == "setting":
        return f"{one.name}={kind.usage}"
    if one.syntax.form == "comparison":
        return "<= QUANTITY"
    return one.name.upper() if one.syntax.form == "subject" and kind.usage == "TEXT" else kind.usage


def sentence(operation: Any) -> str:
    """The clause that says an operation; fields at their defaults are left out."""
    parts = [operation.verb]
    for one in ordered(fields_of(operation)):
        value = getattr(operation, one.name)
        if not one.required and value == one.default:
            continue
        shown = _show(one, value)
        if one.syntax.form == "after":
            shown = f"{one.syntax.preposition} {shown}"
        elif one.syntax.form == "setting":
            shown = f"{one.name}={shown if len(pieces_of(shown) or ()) == 1 else quoted(shown)}"
        parts.append(shown)
    return " ".join(parts)


def _show(one: Field, value: Any) -> str:
    return one.syntax.kind.show(value) if one.syntax.kind else str(value)
