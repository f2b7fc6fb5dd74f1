"""How far a module's outputs move: for any model, with any data."""

from typing import Any

import torch
from torch import Tensor

from surgery.models.data import Data
from surgery.models.loaded import LoadedModel
from surgery.verify.beside import EQUAL, Beside, Progress
from surgery.verify.measurement import Measurement


class OutputQuality:
    """`output error` is |a - b| / |b| and `output cosine` <a, b> / (|a| |b|), all outputs of the original taken as one
    vector b, the module's as a. The original measures 0 and 1 against itself.
    """

    metrics = ("output error", "output cosine")

    def __init__(self, model: LoadedModel, data: Data, *, batch: int | None = None):
        self.data = data
        self.beside = Beside(model.module, data.inputs, options_of(model), batch)

    @property
    def description(self) -> str:
        return f"{self.data.reference}: outputs on {self.beside.rows} inputs"

    def measure(self, module: Any, progress: Progress | None = None) -> Measurement:
        """Run the module over the data's inputs; `progress(done, total)` counts inputs."""
        sums = torch.zeros(4, dtype=torch.float64)
        for _, ours, theirs in self.beside(module, progress):
            for a, b in zip(ours, theirs, strict=True):
                sums += _products(a.double().flatten(), b.double().flatten())
        moved, ours, theirs, both = sums.tolist()
        if moved == 0:
            return Measurement({}, paired={name: EQUAL[name] for name in self.metrics})
        error = (moved / theirs) ** 0.5 if theirs else float("inf")
        cosine = both / (ours * theirs) ** 0.5 if ours * theirs else 0.0
        return Measurement({}, paired={"output error": error, "output cosine": cosine})

    def compare(self, before: Measurement, after: Measurement) -> dict[str, float]:
        """What the second measurement found beside the original."""
        return dict(after.paired)


def options_of(model: LoadedModel) -> dict[str, Any]:
    """What the forward pass takes beside tensors."""
    named = model.example_inputs if isinstance(model.example_inputs, dict) else {}
    return {name: value for name, value in named.items() if not isinstance(value, Tensor)}


def _products(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|², |a|², |b|² and <a, b>."""
    return torch.stack([(a - b).square().sum(), a @ a, b @ b, a @ b]).cpu()
