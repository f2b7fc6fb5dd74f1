"""Data handed over in Python: the model's own inputs as a mapping of tensors."""

from collections.abc import Mapping

from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel
from surgery.models.checkpoint import require_finite
from surgery.models.data import Data
from surgery.models.digest import digest


def given_data(tensors: Mapping[str, Tensor], model: LoadedModel) -> Data:
    """Inputs by name, [N, ..] each with the same N; the output error is measured on them.

    Errors: S212 for names, shapes or lengths that do not fit the model's example inputs, S204 for NaN.
    """
    faults = _faults(tensors, model)
    if faults:
        raise SurgeryError(
            f"the data given is not what {model.reference} takes",
            code="S212",
            notes=faults,
            help="give the tensors of a forward pass by name, with the samples along the first axis of each",
        )
    require_finite(tensors, "the data given")
    inputs = {name: value.detach().cpu() for name, value in tensors.items()}
    count = len(next(iter(inputs.values())))
    return Data("given", f"{count} given inputs", digest(inputs), inputs)


def _faults(tensors: Mapping[str, Tensor], model: LoadedModel) -> list[str]:
    wanted = model.example_inputs if isinstance(model.example_inputs, Mapping) else {}
    faults = [f"missing: {name}" for name in wanted if name not in tensors]
    faults += [f"unexpected: {name}" for name in tensors if name not in wanted]
    faults += [f"{name} is no tensor" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if faults:
        return faults
    lengths = {name: len(value) if value.ndim else 0 for name, value in tensors.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        return [f"{name} has {length} rows" for name, length in lengths.items()]
    return [
        f"{name} is {list(value.shape)}, the example input {list(wanted[name].shape)}"
        for name, value in tensors.items()
        if value.ndim != wanted[name].ndim
    ]
