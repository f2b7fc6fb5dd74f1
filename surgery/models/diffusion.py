"""What a sampler must know of a class-conditional diffusion model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError

LISTS = ("sample_shape", "inputs")


@dataclass(frozen=True)
class Diffusion:
    """A discrete noise schedule and how the network is spoken to.

    betas          [T] float64, index 0 the least noise
    time_scale     the network's time at step `index` is `index * time_scale`: 1000/T is DiT's 0..999, 1/T SiT's [0, 1)
    time_integers  feed the time rounded, as int64 (diffusers)
    sample_shape   (channels, height, width) of one sample, without the batch
    clip           clean samples lie in [-clip, clip], which a sampler may use; None where they are unbounded
    inputs         the network's keyword names of (sample, timestep, label)
    """

    betas: Tensor
    classes: int
    null_class: int | None
    sample_shape: tuple[int, int, int]
    time_scale: float = 1.0
    time_integers: bool = False
    clip: float | None = None
    inputs: tuple[str, str, str] = ("x", "t", "y")

    def document(self) -> dict[str, Any]:
        """Everything as JSON values, for a bundle's manifest."""
        fields = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        return {**fields, "betas": self.betas.tolist(), **{name: list(fields[name]) for name in LISTS}}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Diffusion":
        """The inverse of `document`. Errors: S209 for a document that is not one."""
        try:
            betas = torch.tensor(document["betas"], dtype=torch.float64, device="cpu")
            return cls(**{**document, "betas": betas, **{name: tuple(document[name]) for name in LISTS}})
        except (KeyError, TypeError, ValueError) as error:
            raise SurgeryError(
                f"a noise schedule cannot be read: {type(error).__name__}: {error}",
                code="S209",
                help="the bundle was edited, or written by another version: apply its spec again",
            ) from error

    @property
    def length(self) -> int:
        """T, the number of noise levels."""
        return len(self.betas)

    @cached_property
    def signal(self) -> Tensor:
        """[T] float64, the share of signal variance left at each step (alpha-bar)."""
        return torch.cumprod(1 - self.betas, 0)

    def time_input(self, index: Tensor) -> Tensor:
        """What the network is fed for step indices [N] in 0..T-1."""
        if self.time_integers:
            return torch.round(index * self.time_scale).long()
        return index.float() * self.time_scale

    def sampling_steps(self, steps: int) -> Tensor:
        """`steps` indices in sampling order, noisiest first, evenly spread from T-1 down to 0."""
        if not 1 <= steps <= self.length:
            raise ValueError(f"steps must be between 1 and {self.length}, got {steps}")
        return torch.linspace(self.length - 1, 0, steps, dtype=torch.float64).round().long()

    def noised(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """The samples at step indices [N]: sqrt(a) * clean + sqrt(1 - a) * noise."""
        signal = self.signal.to(torch.float32)[index].view(-1, 1, 1, 1)
        return signal.sqrt() * clean + (1 - signal).sqrt() * noise

    def noise_of(self, output: Tensor) -> Tensor:
        """The epsilon part of the network's output: a learned variance in the later channels is dropped."""
        return output[:, : self.sample_shape[0]]

    def network_inputs(self, sample: Tensor, index: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Keyword inputs of the network for samples [N, C, H, W] at step indices [N] with labels [N]."""
        return dict(zip(self.inputs, (sample, self.time_input(index), label), strict=True))
