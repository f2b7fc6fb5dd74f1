"""Which fields of a config make a library's class as small as the cut model. Tried on the class itself, on meta.

No table of models or of fields: a field is a candidate where the size it would have to be follows from its value, and
it stays where the class built with it differs from the cut model in fewer tensors than before.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from surgery.reload.names import Gap

Path = tuple[str, ...]
Fields = dict[Path, Any]
MOST_TRIALS = 400


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the cut model holds: shapes by name, and the lists of blocks that lost some."""

    shapes: Mapping[str, tuple[int, ...]]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Fault:
    """A tensor in which the class differs: of another size along an axis; `new` 0 if it is gone, `old` 0 if new."""

    name: str
    old: int
    new: int

    def __str__(self) -> str:
        if self.old and self.new:
            return f"`{self.name}` is {self.new} wide"
        return f"`{self.name}` is {'not in the graph' if self.old else 'not in its class'}"


class Search:
    """All ways to set fields of a config, found depth first, the smallest changes first."""

    def __init__(self, build: Any, config: Mapping[str, Any], wanted: Wanted) -> None:
        self.build, self.wanted, self.config = build, wanted, config
        self.trials = 0
        self.nearest: list[Fault] = []
        self.seen: set[Any] = set()

    def answers(self) -> Iterator[Fields]:
        """Fields by path → value, of configs whose class has exactly the wanted tensors."""
        for start in self._starts():
            faults = self.faults(start)
            if faults is None:
                continue
            if not self.nearest or len(faults) < len(self.nearest):
                self.nearest = faults
            yield from self._from(start, faults)

    def _starts(self) -> Iterator[Fields]:
        """Fewer blocks: the field that counts them, and lists with an entry for each, which lose the same entries."""
        counts = [[path for path, value in _whole(self.config) if value == gap.count] for gap in self.wanted.gaps]
        for with_lists in (True, False) if counts else (False,):
            for paths in product(*counts):
                fields: Fields = {}
                for gap, path in zip(self.wanted.gaps, paths, strict=True):
                    fields |= _shortened(self.config, gap) if with_lists else {}
                    fields[path] = len(gap.kept)
                yield fields

    def _from(self, fields: Fields, faults: list[Fault]) -> Iterator[Fields]:
        if not faults:
            yield fields
            return
        if len(faults) < len(self.nearest):
            self.nearest = faults
        for path, value in _candidates(apply(self.config, fields), faults[0]):
            changed = fields | {path: value}
            key = repr(sorted(changed.items()))
            if path in fields or key in self.seen or self.trials >= MOST_TRIALS:
                continue
            self.seen.add(key)
            left = self.faults(changed)
            if left is not None and len(left) < len(faults):
                yield from self._from(changed, left)

    def faults(self, fields: Fields) -> list[Fault] | None:
        """Where the class with these fields differs; None where it cannot be built."""
        self.trials += 1
        try:
            with torch.device("meta"):
                made = {name: tuple(tensor.shape) for name, tensor in self.build(apply(self.config, fields)).items()}
        except Exception:  # whatever a class raises for a config that makes no sense to it
            return None
        return list(_differences(made, self.wanted))


def apply(config: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """A copy of a config with some fields set."""
    changed = copy.deepcopy(dict(config))
    for path, value in fields.items():
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return changed


def fields_of(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field, those of configs inside the config included."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            yield from fields_of(value, (*path, key))
        elif not key.endswith("token_id") and not key.startswith("_"):
            yield (*path, key), value


def _differences(made: Mapping[str, tuple[int, ...]], wanted: Wanted) -> Iterator[Fault]:
    for name, shape in made.items():
        have = wanted.shapes.get(name)
        if have is None:
            yield Fault(name, 1, 0)
        elif len(have) != len(shape):
            yield Fault(name, len(shape), len(have))
        else:
            yield from (Fault(name, old, new) for old, new in zip(shape, have, strict=True) if old != new)
    yield from (Fault(name, 0, 1) for name in wanted.shapes.keys() - made.keys())


def _candidates(config: Mapping[str, Any], fault: Fault) -> Iterator[tuple[Path, Any]]:
    """Fields that would mend a fault: of that very value first, then in proportion, then those left open."""
    if not fault.old or not fault.new:
        return
    whole = list(_whole(config))
    yield from ((path, fault.new) for path, value in whole if value == fault.old)
    for path, value in whole:
        if value != fault.old and value * fault.new % fault.old == 0:
            yield path, value * fault.new // fault.old
    yield from ((path, fault.new) for path, value in fields_of(config) if value is None)


def _whole(config: Mapping[str, Any]) -> Iterator[tuple[Path, int]]:
    return ((path, value) for path, value in fields_of(config) if type(value) is int and value > 0)


def _shortened(config: Mapping[str, Any], gap: Gap) -> Fields:
    """Lists with an entry for each block lose those of the blocks that went."""
    lists = ((path, value) for path, value in fields_of(config) if isinstance(value, list) and len(value) == gap.count)
    return {path: [value[index] for index in gap.kept] for path, value in lists}
