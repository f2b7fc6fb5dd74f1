"""Quality of a module before and after surgery, with the metric that fits the model and its data."""

from typing import Any

import torch

from surgery.models.data import Data
from surgery.models.diffusion import Diffusion
from surgery.models.loaded import LoadedModel
from surgery.verify.denoising import denoising_loss
from surgery.verify.frechet import Gaussian, frechet_distance
from surgery.verify.measurement import BETTER, Measurement
from surgery.verify.outputs import tensors_of
from surgery.verify.sampler import BATCH, Progress, balanced_labels, placement, sample

__all__ = ["BETTER", "DiffusionQuality", "Measurement", "OutputQuality", "quality"]

STEPS = 16


def quality(
    model: LoadedModel, data: Data, *, samples: int, seed: int, steps: int = STEPS
) -> "DiffusionQuality | OutputQuality":
    """DiffusionQuality where the model is a diffusion model and the data holds clean samples, else OutputQuality."""
    if model.diffusion is not None and data.clean is not None:
        return DiffusionQuality(model, data, samples=samples, seed=seed, steps=steps)
    return OutputQuality(model, data)


class DiffusionQuality:
    """Denoising loss on held-out samples; accuracy and Fréchet distance of generated ones, where the data has a judge.

    samples  how many are generated, labels balanced; a Fréchet distance is biased by it, so compare at equal counts only
    seed     of the start noise and of the denoising loss; equal seeds give equal figures
    steps    DDIM steps
    """

    def __init__(
        self,
        model: LoadedModel,
        data: Data,
        *,
        samples: int,
        seed: int,
        steps: int = STEPS,
        batch: int = BATCH,
    ):
        if model.diffusion is None:
            raise ValueError(f"{model.reference} is not a diffusion model")
        self.diffusion: Diffusion = model.diffusion
        self.data, self.samples, self.seed, self.steps, self.batch = data, samples, seed, steps, batch
        self.labels = balanced_labels(self.diffusion, samples)
        self._real = None

    @property
    def description(self) -> str:
        return f"{self.data.reference}: {self.samples} samples, {self.steps} DDIM steps, seed {self.seed}"

    def measure(self, module: Any, progress: Progress | None = None) -> Measurement:
        """`module` is anything called with the model's keyword inputs; `progress(done, total)` counts samples."""
        metrics, absent = self._denoising(module)
        generated = sample(
            module,
            self.diffusion,
            count=self.samples,
            seed=self.seed,
            steps=self.steps,
            batch=self.batch,
            progress=progress,
        )
        judged, unjudged = self._judged(generated)
        return Measurement(metrics | judged, absent | unjudged, generated, self.labels)

    def compare(self, before: Measurement, after: Measurement) -> dict[str, float]:
        """The mean squared error between samples that grew from the same noise."""
        return {"paired error": float((before.samples - after.samples).double().square().mean())}

    def _denoising(self, module: Any) -> tuple[dict[str, float], dict[str, str]]:
        if self.data.clean is None:
            return {}, {"denoising loss": f"data `{self.data.reference}` holds no clean samples"}
        loss = denoising_loss(module, self.diffusion, self.data.clean, self.data.labels, seed=self.seed)
        return {"denoising loss": loss}, {}

    def _judged(self, generated: torch.Tensor) -> tuple[dict[str, float], dict[str, str]]:
        if self.data.judge is None:
            why = f"data `{self.data.reference}` has no classifier to read samples with"
            return {}, {"accuracy": why, "frechet": why}
        if not torch.isfinite(generated).all():
            return {"accuracy": 0.0, "frechet": float("inf")}, {}
        read, features = self.data.judge.read(generated)
        if self._real is None:
            self._real = Gaussian.of(self.data.judge.read(self.data.real)[1])
        accuracy = float((read == self.labels).double().mean())
        if len(features) < 2:
            return {"accuracy": accuracy}, {"frechet": "a single sample has no covariance"}
        return {"accuracy": accuracy, "frechet": frechet_distance(Gaussian.of(features), self._real)}, {}


class OutputQuality:
    """For any model: how far the outputs on the data's inputs move. The original measures 0 against itself."""

    def __init__(self, model: LoadedModel, data: Data, *, batch: int = 64):
        self.reference, self.data, self.batch = model.reference, data, batch
        named = model.example_inputs if isinstance(model.example_inputs, dict) else {}
        self.options = {name: value for name, value in named.items() if not isinstance(value, torch.Tensor)}

    @property
    def description(self) -> str:
        count = len(next(iter(self.data.inputs.values())))
        return f"{self.data.reference}: outputs on {count} inputs"

    @torch.no_grad()
    def measure(self, module: Any, progress: Progress | None = None) -> Measurement:
        """Run the module over the data's inputs; `progress(done, total)` counts inputs."""
        device, dtype = placement(module)
        count = len(next(iter(self.data.inputs.values())))
        parts = []
        for first in range(0, count, self.batch):
            chosen = {name: value[first : first + self.batch] for name, value in self.data.inputs.items()}
            placed = {
                name: value.to(device, dtype if value.is_floating_point() else None) for name, value in chosen.items()
            }
            outputs = tensors_of(module(**placed, **self.options))
            parts.append([output.double().cpu() for output in outputs if output.is_floating_point()])
            if progress is not None:
                progress(min(first + self.batch, count), count)
        return Measurement({}, outputs=tuple(torch.cat(column) for column in zip(*parts, strict=True)))

    def compare(self, before: Measurement, after: Measurement) -> dict[str, float]:
        """`output error` is |a - b| / |b| and `output cosine` <a, b> / (|a| |b|), all outputs taken as one vector b."""
        b = torch.cat([output.flatten() for output in before.outputs])
        a = torch.cat([output.flatten() for output in after.outputs])
        if torch.equal(a, b):
            return {"output error": 0.0, "output cosine": 1.0}
        error = (a - b).norm() / b.norm()
        cosine = (a @ b) / (a.norm() * b.norm())
        return {"output error": float(error), "output cosine": float(cosine)}
