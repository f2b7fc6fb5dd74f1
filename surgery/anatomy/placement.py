"""Where a module's numbers are, and inputs put there."""

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


def fitted(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs on the device of the module's first floating weight, floating ones in its dtype."""
    like = next((each for each in module.parameters() if each.is_floating_point()), torch.zeros(()))

    def fit(leaf: Tensor) -> Tensor:
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else None)

    return pytree.tree_map_only(Tensor, fit, dict(inputs))
