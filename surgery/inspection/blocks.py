"""Lists of like modules (`blocks.0`, `blocks.1`, …) in the module paths of a graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from surgery.inspection.owners import parents


@dataclass(frozen=True)
class Blocks:
    """The outermost module lists; `prefixes` gives each the letter its nodes' names begin with."""

    lists: dict[str, tuple[int, ...]]

    @cached_property
    def prefixes(self) -> dict[str, str]:
        if len(self.lists) < 2:
            return dict.fromkeys(self.lists, "h")
        split = {path: path.split(".") for path in self.lists}
        return {
            path: _distinct(parts, [other for other in split.values() if other != parts])
            for path, parts in split.items()
        }

    def of(self, path: str) -> tuple[str, int] | None:
        """The list and the index of the block a module lies in."""
        for up in parents(path):
            above, _, last = up.rpartition(".")
            if above in self.lists and last.isdigit():
                return above, int(last)
        return None


def blocks(paths: Iterable[str]) -> Blocks:
    """Find lists with at least two numbered members that hold modules of their own."""
    members: dict[str, set[int]] = {}
    for path in paths:
        parts = path.split(".")
        for index in range(1, len(parts) - 1):
            if parts[index].isdigit():
                members.setdefault(".".join(parts[:index]), set()).add(int(parts[index]))
                break
    return Blocks({path: tuple(sorted(found)) for path, found in members.items() if len(found) > 1})


def _distinct(parts: list[str], others: list[list[str]]) -> str:
    """The first part of a path that no other path has at its place."""
    for index, part in enumerate(parts):
        if all(len(other) <= index or other[index] != part for other in others):
            return part
    return "_".join(parts)
