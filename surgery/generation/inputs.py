"""The inputs of a decoder's graph at any length of text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.graphs import placeholders
from surgery.bundle.value import Value
from surgery.generation.faults import wrong
from surgery.generation.parts import Parts


def inputs_at(parts: Parts, given: Mapping[str, Any], tokens: Tensor, length: int) -> dict[str, Any]:
    """All inputs by name, those that go along with the tokens continued up to `length`: masks with ones, positions
    counting on, others with their last column. `given` stand at the length of the prompt; a mask that is not given
    is of ones, positions that are not given count the tokens that the mask leaves. Raises SurgeryError (S722).
    """
    inputs: dict[str, Any] = {}
    for node in placeholders(parts.graph_module):
        name, value = str(node.target), parts.values.get(node)
        if node is parts.tokens:
            inputs[name] = tokens
        elif not isinstance(value, Value):
            inputs[name] = given.get(name, node.meta.get("val"))  # a flag that capture made a constant
        elif name in given:
            inputs[name] = _continued(name, given[name], length) if parts.rows(node) == (1,) else given[name]
        else:
            inputs[name] = _assumed(parts, name, value, given, tokens, length)
    return inputs


def _assumed(parts: Parts, name: str, value: Value, given: Mapping[str, Any], tokens: Tensor, length: int) -> Tensor:
    rows, along = len(tokens), len(value.shape) == 2 and value.shape[1] == parts.length
    if along and name.endswith("position_ids"):
        mask = _continued("mask", given["attention_mask"], length) if "attention_mask" in given else None
        counted = torch.ones(rows, length, dtype=torch.int64, device=tokens.device) if mask is None else mask.long()
        return (counted.cumsum(1) - 1).clamp(min=0)
    if name.endswith("mask") and len(value.shape) == 2:
        size = length if along else _beside(parts, value.shape[1], given)
        if size:
            return torch.ones(rows, size, dtype=value.dtype, device=tokens.device)
    raise wrong(f"the model also takes `{name}`, {value}", f"give `{name}=` as in a forward pass of the prompt")


def _beside(parts: Parts, size: Any, given: Mapping[str, Any]) -> int:
    """The size that another input has where the graph says that the two are the same; 0 without one."""
    for node in placeholders(parts.graph_module):
        name = str(node.target)
        if name in given and size in parts.shape(node):
            return given[name].shape[parts.shape(node).index(size)]
    return 0


def _continued(name: str, tensor: Tensor, length: int) -> Tensor:
    more = length - tensor.shape[1]
    if more <= 0:
        return tensor[:, :length]
    last = tensor[:, -1:].expand(-1, more)
    if name.endswith("mask"):
        last = torch.ones_like(last)
    elif name.endswith("position_ids"):
        last = last + torch.arange(1, more + 1, device=tensor.device)
    return torch.cat([tensor, last], 1)
