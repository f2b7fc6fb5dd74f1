"""`module.path:factory`: a Python function that returns a module, or (module, example inputs)."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import did_you_mean
from surgery.models.checkpoint import require_finite
from surgery.models.loaded import LoadedModel


def load(location: str, *, weights: bool = True) -> LoadedModel:
    """Import from the path or the working folder and call the factory without arguments.

    Errors: S208 where it cannot be imported or called, or returns something else; S204 for NaN weights.
    """
    factory = find(location)
    try:
        with torch.device("cpu" if weights else "meta"):
            made = factory()
    except Exception as error:
        raise SurgeryError(f"`{location}` raised {type(error).__name__}: {error}", code="S208") from error
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(module, nn.Module):
        raise SurgeryError(
            f"`{location}` returned {type(module).__name__}, not a torch.nn.Module",
            code="S208",
            help="return a module, or (module, example_inputs)",
        )
    if weights:
        require_finite(module.state_dict(), location)
    return LoadedModel(location, module.eval(), checked_inputs(location, inputs))


def find(location: str) -> Callable[[], Any]:
    """The factory itself."""
    path, _, name = location.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except Exception as error:
        raise SurgeryError(
            f"cannot import `{path}`: {type(error).__name__}: {error}",
            code="S208",
            help="it is looked up on PYTHONPATH and in the working folder",
        ) from error
    factory: Any = module
    for part in name.split("."):
        if not hasattr(factory, part):
            known = [known for known in vars(factory) if callable(getattr(factory, known)) and known[0] != "_"]
            raise SurgeryError(f"`{path}` has no `{name}`", code="S208", help=did_you_mean(part, known))
        factory = getattr(factory, part)
    if not callable(factory):
        raise SurgeryError(
            f"`{location}` is {type(factory).__name__}, not a function",
            code="S208",
            help="name a function without required arguments",
        )
    return factory


def checked_inputs(location: str, inputs: Any) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """Keyword tensors as a dict, positional ones as a tuple; a single tensor becomes a tuple of one."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    if isinstance(inputs, dict | tuple | list) and all(isinstance(value, Tensor) for value in values):
        return inputs if isinstance(inputs, dict) else tuple(inputs)
    raise SurgeryError(
        f"`{location}` returned example inputs that are not tensors",
        code="S208",
        help="return (module, inputs) with inputs a tuple of tensors or a dict of keyword tensors",
    )
