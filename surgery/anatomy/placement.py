"""Where a module's numbers are, in what dtype, and inputs put there."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter, or buffer; the CPU without any."""
    held = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


def placement(module: Any) -> tuple[torch.device, torch.dtype]:
    """The device and floating dtype of a module's first floating parameter (CPU float32 for a module without)."""
    for parameter in getattr(module, "parameters", lambda: ())():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def fitted(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs where the module's `placement` is, floating ones in its dtype."""
    device, dtype = placement(module)

    def fit(leaf: Tensor) -> Tensor:
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    return pytree.tree_map_only(Tensor, fit, dict(inputs))
