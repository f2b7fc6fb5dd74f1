"""Quality of a module before and after surgery, with the metric that fits the model and its data."""

from typing import Any

import torch

from surgery.models.data import Data
from surgery.models.diffusion import Diffusion
from surgery.models.loaded import LoadedModel
from surgery.verify.denoising import denoising_loss
from surgery.verify.frechet import Gaussian, frechet_distance
from surgery.verify.measurement import BETTER, Measurement
from surgery.verify.output_quality import OutputQuality
from surgery.verify.sampler import BATCH, Progress, balanced_labels, sample
from surgery.verify.task_quality import TASKS, TaskQuality

__all__ = ["BETTER", "DiffusionQuality", "Measurement", "OutputQuality", "TaskQuality", "quality"]

STEPS = 16


def quality(
    model: LoadedModel, data: Data, *, samples: int, seed: int, steps: int = STEPS, batch: int | None = None
) -> "DiffusionQuality | TaskQuality | OutputQuality":
    """DiffusionQuality where the model is a diffusion model and the data holds clean samples, TaskQuality where the
    data has a task, else OutputQuality. `batch` is of the latter two."""
    if model.diffusion is not None and data.clean is not None:
        return DiffusionQuality(model, data, samples=samples, seed=seed, steps=steps)
    if data.task in TASKS:
        return TaskQuality(model, data, batch=batch)
    return OutputQuality(model, data, batch=batch)


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
    def metrics(self) -> tuple[str, ...]:
        """What `measure` and `compare` will give."""
        judged = ("accuracy", "frechet")[: self.samples] if self.data.judge else ()
        return ("denoising loss", *judged, "paired error")

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
