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
    task     "causal-lm", "masked-lm", "seq2seq-lm", "embedding" or "classification": which loss and metrics fit, or
             None
    targets  int64, the right class per row [N] or per output position [N, T], -100 where none counts: the next token,
             the token behind a mask, the label
    right    [N, T, 2] int64, of language whose accuracy is told: the first and the last token that are right there
    calibration  keyword tensors [K, ..] to calibrate on, none of whose rows is among `inputs`, which are held out and
             what quality is measured on; `calibration_targets` are theirs. None: nothing to calibrate on
    """

    reference: str
    description: str
    sha256: str
    inputs: Mapping[str, Tensor]
    clean: Tensor | None = None
    labels: Tensor | None = None
    real: Tensor | None = None
    judge: Judge | None = None
    task: str | None = None
    targets: Tensor | None = None
    right: Tensor | None = None
    calibration: Mapping[str, Tensor] | None = None
    calibration_targets: Tensor | None = None
