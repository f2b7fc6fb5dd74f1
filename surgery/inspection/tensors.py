"""What a graph module holds: parameters, buffers and constants by dotted name."""

import torch
from torch import Tensor, nn


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter under every name it has, tied ones repeated."""
    return dict(module.named_parameters(remove_duplicate=False))


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers, persistent or not, and constants an exporter lifted out of the code."""
    found = dict(module.named_buffers(remove_duplicate=False))
    for path, owner in module.named_modules():
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                found.setdefault(f"{path}.{name}".lstrip("."), value)
    return found


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers and constants."""
    return {**parameters(module), **buffers(module)}
