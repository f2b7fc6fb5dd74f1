"""Data as a measurement sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Judge(Protocol):
    """A fixed classifier that reads samples."""

    def read(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [N, C, H, W] -> predicted class [N] int64 and features [N, D]."""


@dataclass(frozen=True)
class Data:
    """Inputs for any model; for a diffusion model also clean samples and what generated ones are held against.

    inputs   keyword tensors of the model's forward pass, [N, ..] each
    sha256   of the bytes the data came from
    clean    [M, C, H, W] samples kept out of training, `labels` [M] int64
    real     [R, C, H, W] samples whose distribution generated ones should have
    """

    reference: str
    description: str
    sha256: str
    inputs: Mapping[str, Tensor]
    clean: Tensor | None = None
    labels: Tensor | None = None
    real: Tensor | None = None
    judge: Judge | None = None
