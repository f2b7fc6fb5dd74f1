"""The 1,797 handwritten 8 x 8 digits that ship with the package, in a fixed split."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from surgery.models.checkpoint import read_tensors

CLASSES = 10
SHAPE = (1, 8, 8)
WEIGHTS = Path(__file__).parent / "weights"
FILE = WEIGHTS / "digits.safetensors"
HELD_OUT_EVERY = 6


@dataclass(frozen=True)
class Images:
    """`pixels` [N, 1, 8, 8] float32 in [-1, 1] and `labels` [N] int64 in 0..9."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def to_pixels(raw: Tensor) -> Tensor:
    """uint8 [N, 8, 8] in 0..16 -> float32 [N, 1, 8, 8] in [-1, 1]."""
    return raw.float().div(8).sub(1).unsqueeze(1)


def to_grey(pixels: Tensor) -> Tensor:
    """float [N, 1, 8, 8] in [-1, 1] -> uint8 [N, 1, 8, 8] in 0..255, for pictures."""
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


@cache
def all_digits() -> Images:
    tensors = read_tensors(FILE)
    return Images(to_pixels(tensors["images"]), tensors["labels"].long())


def split(held_out: bool) -> Images:
    """Every sixth image is held out (299 images); the others (1,498) train. The split never changes."""
    digits = all_digits()
    chosen = (torch.arange(len(digits)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    return Images(digits.pixels[chosen], digits.labels[chosen])
