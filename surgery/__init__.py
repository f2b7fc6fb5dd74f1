"""Declarative model surgery for PyTorch. Importing this imports no torch; names load when they are used."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SurgeryError": "surgery.diagnostics",
    "analyze": "surgery.session",
    "apply": "surgery.session",
    "check": "surgery.check",
    "compile": "surgery.session",
    "format": "surgery.language",
    "inspect": "surgery.session",
    "load": "surgery.bundle",
    "operation": "surgery.operations",
    "parse": "surgery.language",
    "plan": "surgery.session",
    "save": "surgery.bundle",
    "write_edges": "surgery.targets.edges_file",
}

__all__ = [
    "SurgeryError",
    "__version__",
    "analyze",
    "apply",
    "check",
    "compile",
    "format",
    "inspect",
    "load",
    "operation",
    "parse",
    "plan",
    "save",
    "write_edges",
]


class _Door(ModuleType):
    """The package as a module on which `surgery.check` and `surgery.plan` stay the functions.

    Importing the rooms of the same names would otherwise put the rooms there.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `surgery` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


sys.modules[__name__].__class__ = _Door
