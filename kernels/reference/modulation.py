"""Modulation in plain PyTorch, any floating dtype: what every other implementation is held against."""

import torch
from torch import Tensor


def modulation(c: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """y = a Wᵀ + b with a = c · sigmoid(c), or a = c: c [..., K], weight [N, K], bias [N] → [..., N]."""
    made = activated(c, activate) @ weight.mT
    return made if bias is None else made + bias


def modulation_backward(grad: Tensor, c: Tensor, weight: Tensor, activate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of c, weight and bias."""
    rows, coordinates = grad.reshape(-1, weight.shape[0]), c.reshape(-1, weight.shape[1])
    inner = rows @ weight
    if activate:
        gate = torch.sigmoid(coordinates)
        inner = inner * gate * (1 + coordinates * (1 - gate))
    return inner.view(c.shape), rows.mT @ activated(coordinates, activate), rows.sum(0)


def activated(c: Tensor, activate: bool) -> Tensor:
    return c * torch.sigmoid(c) if activate else c
