"""The recipe of the fixed classifier that reads generated digits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from surgery.zoo import digits
from surgery.zoo.recipe import Training


class DigitReader(nn.Module):
    """images [B, 1, 8, 8] in [-1, 1] -> logits [B, 10]; `features` [B, 64] feed the last layer."""

    def __init__(self, channels: int = 32, features: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.hidden = nn.Linear(2 * channels * 4, features)
        self.head = nn.Linear(features, digits.CLASSES)

    def features(self, images: Tensor) -> Tensor:
        out = F.gelu(self.conv1(images))
        out = F.max_pool2d(F.gelu(self.conv2(out)), 2)
        out = F.max_pool2d(F.gelu(self.conv3(out)), 2)
        return F.gelu(self.hidden(out.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class Classifier:
    """Learns to read digits, each shifted by up to one pixel and slightly noised."""

    name: str
    summary: str
    training: Training
    noise: float = 0.1
    default_data: str = "digits"

    def build(self) -> nn.Module:
        return DigitReader()

    def diffusion(self) -> None:
        return None

    def source(self) -> dict[str, Any]:
        return {}

    def training_data(self) -> digits.Images:
        return digits.split(held_out=False)

    def loss(self, network: nn.Module, data: digits.Images, chance: Generator) -> Tensor:
        """Cross entropy with label smoothing."""
        chosen = torch.randint(len(data), (self.training.batch,), generator=chance)
        right, down = torch.randint(0, 3, (2,), generator=chance).tolist()
        images = F.pad(data.pixels[chosen], (1, 1, 1, 1), value=-1.0)[:, :, down : down + 8, right : right + 8]
        images = images + self.noise * torch.randn(images.shape, generator=chance)
        return F.cross_entropy(network(images), data.labels[chosen], label_smoothing=0.05)

    def example_inputs(self, batch: int = 2) -> dict[str, Tensor]:
        return {"images": digits.split(held_out=True).pixels[:batch]}
