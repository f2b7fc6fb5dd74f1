"""The recipe of a class-conditional diffusion transformer on the digits."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from surgery.models.diffusion import Diffusion
from surgery.zoo import digits
from surgery.zoo.recipe import Training


@dataclass(frozen=True)
class Denoiser:
    """Learns to predict the noise in a noised digit, with the label dropped now and then.

    `time_scale` is what one of the T noise levels counts in the network's time: 1000/T is DiT's unit, 1/T is SiT's.
    `betas` are the first and the last noise variance and T.
    """

    name: str
    summary: str
    time_scale: float
    training: Training
    network: dict[str, int | float] = field(default_factory=dict)
    betas: tuple[float, float, int] = (1e-3, 0.2, 100)
    label_dropout: float = 0.1
    default_data: str = "digits"

    def build(self) -> nn.Module:
        from surgery.zoo.dit import DiT

        return DiT(size=digits.SHAPE[1], channels=digits.SHAPE[0], classes=digits.CLASSES, **self.network)

    def diffusion(self) -> Diffusion:
        low, high, length = self.betas
        return Diffusion(
            betas=torch.linspace(low, high, length, dtype=torch.float64, device="cpu"),
            classes=digits.CLASSES,
            null_class=digits.CLASSES,
            sample_shape=digits.SHAPE,
            time_scale=self.time_scale,
            clip=1.0,
        )

    def source(self) -> dict[str, Any]:
        return {}

    def training_data(self) -> digits.Images:
        return digits.split(held_out=False)

    def loss(self, network: nn.Module, data: digits.Images, chance: Generator) -> Tensor:
        """Mean squared error of the predicted noise."""
        diffusion, batch = self.diffusion(), self.training.batch
        chosen = torch.randint(len(data), (batch,), generator=chance)
        index = torch.randint(diffusion.length, (batch,), generator=chance)
        noise = torch.randn(batch, *digits.SHAPE, generator=chance)
        dropped = torch.rand(batch, generator=chance) < self.label_dropout
        label = torch.where(dropped, diffusion.null_class, data.labels[chosen])
        noised = diffusion.noised(data.pixels[chosen], noise, index)
        output = network(**diffusion.network_inputs(noised, index, label))
        return (output - noise).square().mean()

    def example_inputs(self, batch: int = 2) -> dict[str, Tensor]:
        index = torch.linspace(90, 10, batch).long()
        label = torch.arange(batch) % digits.CLASSES
        noise = torch.randn(batch, *digits.SHAPE, generator=torch.Generator().manual_seed(0))
        return self.diffusion().network_inputs(noise, index, label)
