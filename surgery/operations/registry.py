"""Which class a verb names. Verbs load when they are asked for.

The core's verbs and those of other packages come through one door, the entry points `surgery.operations`. A point
names a package (a verb is the module of that name in it), a module (all operations in it) or a class.
`@surgery.operation` in a program adds to the same table.
"""

import os
import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from surgery.diagnostics import SurgeryError

GROUP = "surgery.operations"
METADATA = (".dist-info", ".egg-info")
_OWNERS: dict[str, type] = {}


class Point(NamedTuple):
    """An entry point: the name a package gives it, and `module` or `module:Class`."""

    name: str
    value: str


CORE = Point("surgery", "surgery.operations")


def register(cls: type) -> type:
    """Enter an operation class under its verb. Defining the same class anew replaces it."""
    known = _OWNERS.get(cls.verb)
    if known is not None and _owner(known) != _owner(cls):
        raise _twice(cls.verb, _owner(known), _owner(cls))
    _OWNERS[cls.verb] = cls
    return cls


def find(verb: str) -> type | None:
    """The operation of a verb, or None. Raises SurgeryError where two packages own it or its module is broken."""
    for point in points():
        _load(point, verb)
    return _OWNERS.get(verb)


def verbs() -> dict[str, type]:
    """Every verb and its operation, sorted by verb; loads them all."""
    for point in points():
        for module in _modules(point.value):
            _import(point, f"{point.value}.{module}")
        _load(point, None)
    return dict(sorted(_OWNERS.items()))


def owner(verb: str) -> str:
    """`module:Class` behind a verb."""
    return _owner(_OWNERS[verb])


@cache
def points() -> tuple[Point, ...]:
    """The entry points, the core's first; the core's own is known without installed metadata."""
    return (CORE, *sorted(set(_installed()) - {CORE}))


def _installed() -> list[Point]:
    """The entry points of installed packages.

    Importing `importlib.metadata` and asking it takes longer than reading a spec, so it is asked only where a package
    beside this one names the group.
    """
    if not any(_names_group(place) for place in sys.path):
        return []
    from importlib.metadata import entry_points

    return [Point(point.name, point.value) for point in entry_points(group=GROUP)]


def _names_group(place: str) -> bool:
    """Whether a package in a folder of the import path, other than this one, has points of the group."""
    try:
        folders = [entry.path for entry in os.scandir(place or ".") if entry.name.endswith(METADATA)]
    except OSError:
        return os.path.isfile(place)  # an archive: only `importlib.metadata` can look inside
    for folder in folders:
        try:
            with open(os.path.join(folder, "entry_points.txt"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        if f"[{GROUP}]" in text and not os.path.basename(folder).startswith("model_surgery-"):
            return True
    return False


def _load(point: Point, verb: str | None) -> None:
    """Import what a point has for a verb; all it has where no verb is asked for."""
    module, _, attribute = point.value.partition(":")
    if attribute:
        if verb in (None, point.name) or point.name in _OWNERS:
            _enter(point, getattr(_import(point, module), attribute, None))
        return
    if not _modules(module):
        _import(point, module)
    elif verb and verb.replace("-", "_") in _modules(module):
        _import(point, f"{module}.{verb.replace('-', '_')}")


def _enter(point: Point, cls: type | None) -> None:
    if not hasattr(cls, "verb"):
        raise SurgeryError(f"the plugin `{point.name}` names no operation: `{point.value}`", code="S121")
    register(cls)


@cache
def _modules(package: str) -> frozenset[str]:
    """The modules of a package, each a verb it may have; nothing for a plain module."""
    if ":" in package:
        return frozenset()
    try:
        spec = find_spec(package)
    except ImportError:
        return frozenset()
    places = spec.submodule_search_locations if spec else None
    return frozenset(module.name for module in pkgutil.iter_modules(places)) if places else frozenset()


def _import(point: Point, module: str):
    try:
        return import_module(module)
    except ImportError as error:
        raise SurgeryError(
            f"the operations of `{point.name}` cannot be loaded: {error}",
            code="S121",
            help=f"mend or uninstall the package that provides `{point.value}`",
        ) from error


def _owner(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _twice(verb: str, first: str, second: str) -> SurgeryError:
    return SurgeryError(
        f"two operations are called `{verb}`",
        code="S120",
        notes=[f"`{first}` and `{second}`"],
        help="uninstall one of them, or give your class another `verb`",
    )
