"""Data to measure on, by reference: `digits`, `noise`, `tensors:"file.safetensors"`. One file per scheme."""

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
    are let pass, so that a spec's `data` clause can be handed on as it is.

    Errors: S211 unknown kind or setting, S212 data that does not fit the model.
    """
    kind, _, location = reference.partition(":")
    if kind not in schemes():
        raise SurgeryError(f"unknown data `{reference}`", code="S211", help=did_you_mean(kind, schemes()))
    unknown = sorted(set(settings) - MEASUREMENT)
    if unknown:
        help = did_you_mean(unknown[0], sorted(MEASUREMENT))
        raise SurgeryError(f"data has no setting `{unknown[0]}`", code="S211", help=help)
    module = importlib.import_module(f"surgery.models.data.{kind}")
    return module.load(location, model, samples=settings.get("samples"), seed=settings.get("seed") or 0)
