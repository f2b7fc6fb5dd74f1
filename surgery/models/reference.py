"""From the text a person writes to a loaded model."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from dataclasses import replace

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import did_you_mean, nearest
from surgery.models.loaded import LoadedModel

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def schemes() -> tuple[str, ...]:
    """What may stand before the colon of a reference."""
    package = importlib.import_module("surgery.models.schemes")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def open_model(
    reference: str, *, weights: bool = True, allow_import: bool = False, dtype: str | None = None
) -> LoadedModel:
    """The model that `reference` names.

    `zoo:NAME` ships with the package, `hf:PATH` is a folder that transformers saved, `hf:ORG/NAME` one of the hub,
    `diffusers:PATH` a folder that diffusers saved, a plain path is a bundle, and `module.path:factory` calls a Python
    function (only with `allow_import`: a spec from a stranger must not run code).
    Without `weights` the module and its example inputs are on the meta device. `dtype` is what floats are turned into.

    Errors: SurgeryError S2xx.
    """
    scheme, location = split_reference(reference)
    if scheme == "python" and not allow_import:
        raise SurgeryError(
            f"`{reference}` would run Python code, which a spec alone may not ask for",
            code="S207",
            help=f"say so on the command line, `--model {location}`, or pass the module to `surgery.compile`",
        )
    load = importlib.import_module(f"surgery.models.schemes.{scheme}").load
    wanted = getattr(torch, dtype) if dtype else None
    if "dtype" in inspect.signature(load).parameters:  # a library knows best which of its tensors stay wide
        model = load(location, weights=weights, dtype=wanted)
    else:
        model = load(location, weights=weights)
        model = model.converted(wanted) if wanted else model
    return model if weights else replace(model, example_inputs=on_meta(model.example_inputs))


def on_meta(inputs: dict[str, Tensor] | tuple[Tensor, ...]) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """The same inputs without their values."""
    if isinstance(inputs, dict):
        return {name: value.to("meta") for name, value in inputs.items()}
    return tuple(value.to("meta") for value in inputs)


def split_reference(reference: str) -> tuple[str, str]:
    """Scheme and location: `zoo:digits-dit` -> zoo, digits-dit; `./folder` -> bundle; `package:make` -> python."""
    if not reference.strip():
        raise SurgeryError("a model reference is empty", code="S200", help="write `zoo:digits-dit`, or a path")
    head, colon, rest = reference.partition(":")
    if colon and head in schemes():
        return head, rest
    if not colon or "/" in head or head.startswith("."):
        return "bundle", reference
    if FACTORY.fullmatch(head) and FACTORY.fullmatch(rest) and not _is_slip(head):
        return "python", reference
    raise SurgeryError(
        f"unknown kind of model `{head}:` in `{reference}`",
        code="S200",
        help=did_you_mean(head, schemes()),
    )


def _is_slip(head: str) -> bool:
    """Whether a word before the colon is rather a misspelt scheme than a Python module."""
    return "." not in head and nearest(head, schemes()) is not None and importlib.util.find_spec(head) is None
