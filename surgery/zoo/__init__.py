"""Small trained models that ship with the package. A file in `entries/` is a model; there is no list to keep."""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import did_you_mean

if TYPE_CHECKING:
    from surgery.zoo.recipe import Recipe

__all__ = ["entry", "names", "weights_file"]

HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Every model's name, as in `zoo:NAME`."""
    return tuple(sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules([str(HERE / "entries")])))


def entry(name: str) -> "Recipe":
    """How a model is built and trained. Errors: S201 for an unknown name."""
    if name not in names():
        raise SurgeryError(f"the zoo has no `{name}`", code="S201", help=did_you_mean(name, names()))
    return importlib.import_module(f"surgery.zoo.entries.{name.replace('-', '_')}").MODEL


def weights_file(name: str) -> Path:
    """Where the shipped weights of a model are."""
    return HERE / "weights" / f"{name}.safetensors"
