"""The fixed classifier at work: it reads digits and gives the features that the Fréchet distance compares."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from surgery import zoo
from surgery.models.checkpoint import fit, read_tensors
from surgery.zoo.classifier import DigitReader

NAME = "digits-classifier"
BATCH = 500


@dataclass(frozen=True)
class DigitJudge:
    reader: DigitReader

    @torch.no_grad()
    def read(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 1, 8, 8] in [-1, 1] -> the digit read [N] int64 and 64 features [N, 64]."""
        features = torch.cat([self.reader.features(part) for part in samples.float().cpu().split(BATCH)])
        return self.reader.head(features).argmax(1), features


@cache
def digit_judge() -> DigitJudge:
    """The shipped classifier."""
    reader = zoo.entry(NAME).build().eval()
    fit(reader, read_tensors(zoo.weights_file(NAME)), f"zoo:{NAME}")
    return DigitJudge(reader)
