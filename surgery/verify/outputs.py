"""The tensors in whatever a module returns."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of an output in its order: a tensor, a mapping, a sequence or a dataclass of such."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        children: Iterable[Any] = output.values()
    elif is_dataclass(output):
        children = (getattr(output, field.name) for field in fields(output))
    elif isinstance(output, Iterable) and not isinstance(output, str | bytes):
        children = output
    else:
        return []
    return [tensor for child in children for tensor in tensors_of(child)]


def first_tensor(output: Any) -> Tensor:
    """The first tensor of an output: the prediction, by convention."""
    tensors = tensors_of(output)
    if not tensors:
        raise TypeError(f"the module returned no tensor but {type(output).__name__}")
    return tensors[0]
