"""Passes of one clause that have nothing in common are run as one: a graph is checked once, not once per site."""

from collections.abc import Iterable
from typing import Any

from surgery.passes.runner import Pass


def joined(passes: Iterable[Pass]) -> list[Pass]:
    """The same passes, fewer: each in the first of its kind, if neither that nor any behind it touches what it does.

    A pass that can be joined has `touched`, the names of the tensors and nodes it changes, and `with_(others)`, one
    pass that does what it and others do. Any other pass stays where it is, and all in front of it stays in front.
    """
    groups: list[list[Any]] = []
    for step in passes:
        place = _place(groups, step)
        if place is None:
            groups.append([step])
        else:
            groups[place].append(step)
    return [first.with_(others) if others else first for first, *others in groups]


def _place(groups: list[list[Any]], step: Any) -> int | None:
    """The group a pass goes into; None where it is the first of one."""
    for place in reversed(range(len(groups)) if hasattr(step, "touched") else ()):
        first = groups[place][0]
        if any(not hasattr(each, "touched") or step.touched & each.touched for each in groups[place]):
            return None
        if _kind(first) == _kind(step):
            return place
    return None


def _kind(step: Any) -> tuple:
    return type(step), step.clause, step.place, step.name
