"""What every zoo model is made of: how it is built, what it learns from, and for how long."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from surgery.models.diffusion import Diffusion


@dataclass(frozen=True)
class Training:
    """AdamW without weight decay; the averaged weights are what ships.

    The rate rises for `warmup` steps, stays at `rate`, and falls linearly to zero over the last `cooldown` share.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    warmup: int = 100
    cooldown: float = 0.3
    average: float = 0.999
    gradient_norm: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0 .. `steps` - 1."""
        fall = max(1.0, self.steps * self.cooldown)
        return self.rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / fall)

    def average_at(self, step: int) -> float:
        """Decay of the moving average: short at first, so that early weights are forgotten."""
        return min(self.average, (1 + step) / (10 + step))

    def chance(self, step: int) -> Generator:
        """The random numbers of one step depend on the seed and the step alone, so resuming is exact."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


class Recipe(Protocol):
    """A zoo model. `default_data` is what it is measured on where a spec names nothing."""

    name: str
    summary: str
    training: Training
    default_data: str

    def build(self) -> nn.Module:
        """The untrained network."""

    def training_data(self) -> Any:
        """What `loss` draws its batches from."""

    def loss(self, network: nn.Module, data: Any, chance: Generator) -> Tensor:
        """The loss of one random batch."""

    def example_inputs(self, batch: int = 2) -> dict[str, Tensor]:
        """Keyword inputs of a forward pass."""

    def diffusion(self) -> Diffusion | None:
        """How the network is sampled from, if it is a diffusion model."""

    def source(self) -> dict[str, Any]:
        """As `LoadedModel.source`: what reading text needs; empty for a model of images."""
