"""Data to measure on, by reference: `text:`, `jsonl:`, `images:` or `tensors:` a path, `stdlib`, `tasks`, `digits` or
`noise`. A file each."""

import importlib
import pkgutil
from typing import Any

from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import did_you_mean
from surgery.models.data.value import Data, Judge
from surgery.models.loaded import LoadedModel

__all__ = ["Data", "Judge", "open_data", "schemes"]

MEASUREMENT = {"samples", "seed", "steps", "batch"}


def schemes() -> tuple[str, ...]:
    """The kinds of data there are: every module here that has `load`."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name != "value"))


def open_data(reference: str, model: LoadedModel, **settings: Any) -> Data:
    """The data that `reference` names, fit for `model`.

    settings: `samples` and `seed` shape data that is drawn or cut; `steps` and `batch` belong to the measurement and
    are let pass, so that a spec's `data` clause can be handed on as it is. A kind may take more, its `SETTINGS`.

    Errors: S211 unknown kind or setting, S212 data that does not fit the model.
    """
    kind, _, location = reference.partition(":")
    if kind not in schemes():
        raise SurgeryError(f"unknown data `{reference}`", code="S211", help=did_you_mean(kind, schemes()))
    module = importlib.import_module(f"surgery.models.data.{kind}")
    own = getattr(module, "SETTINGS", ())
    given = {name: value for name, value in settings.items() if value is not None}
    _refuse_unknown(kind, given, {*MEASUREMENT, *own})
    more = {name: given[name] for name in own if name in given}
    return module.load(location, model, samples=given.get("samples"), seed=given.get("seed", 0), **more)


def _refuse_unknown(kind: str, settings: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(settings) - known)
    if not unknown:
        return
    help = did_you_mean(unknown[0], sorted(known)) or "it takes " + ", ".join(f"`{name}`" for name in sorted(known))
    raise SurgeryError(f"`{kind}` data has no setting `{unknown[0]}`", code="S211", help=help)
