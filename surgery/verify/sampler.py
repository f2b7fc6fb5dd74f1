"""Deterministic sampling from a class-conditional diffusion model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.placement import placement
from surgery.models.diffusion import Diffusion
from surgery.verify.outputs import first_tensor

Progress = Callable[[int, int], None]
BATCH = 250


def predict_noise(module: Any, diffusion: Diffusion, sample: Tensor, index: Tensor, label: Tensor) -> Tensor:
    """The module's epsilon, float32 on the CPU, for float32 samples [N, C, H, W] at step indices [N] with labels [N]."""
    device, dtype = placement(module)
    inputs = diffusion.network_inputs(sample.to(dtype), index, label)
    output = module(**{name: value.to(device) for name, value in inputs.items()})
    return diffusion.noise_of(first_tensor(output)).float().cpu()


def start_noise(diffusion: Diffusion, count: int, seed: int) -> Tensor:
    """[count, C, H, W] float32. The same seed gives the same start, whatever the batch size."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, *diffusion.sample_shape, generator=chance)


def balanced_labels(diffusion: Diffusion, count: int) -> Tensor:
    """[count] int64: 0, 1, .., classes - 1, 0, 1, .."""
    return torch.arange(count) % diffusion.classes


@torch.no_grad()
def sample(
    module: Any,
    diffusion: Diffusion,
    *,
    count: int,
    seed: int,
    steps: int,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Tensor:
    """[count, C, H, W] float32 on the CPU by DDIM (eta 0) in float32, labels balanced; `progress(done, total)` in samples."""
    start, labels = start_noise(diffusion, count, seed), balanced_labels(diffusion, count)
    done = []
    for first in range(0, count, batch):
        chosen = slice(first, first + batch)
        done.append(ddim(module, diffusion, start[chosen], labels[chosen], steps))
        if progress is not None:
            progress(min(first + batch, count), count)
    return torch.cat(done)


def ddim(module: Any, diffusion: Diffusion, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Follow the deterministic path from noise [N, C, H, W] down to a sample."""
    current, signal = noise, diffusion.signal
    order = diffusion.sampling_steps(steps)
    for here, after in zip(order.tolist(), [*order[1:].tolist(), None], strict=True):
        index = torch.full((len(current),), here)
        epsilon = predict_noise(module, diffusion, current, index, labels)
        clean, epsilon = clean_estimate(diffusion, current, epsilon, float(signal[here]))
        left = 1.0 if after is None else float(signal[after])
        current = left**0.5 * clean + (1 - left) ** 0.5 * epsilon
    return current


@torch.no_grad()
def ancestral(module: Any, diffusion: Diffusion, noise: Tensor, labels: Tensor, chance: torch.Generator) -> Tensor:
    """DDPM's own sampler over all T steps, fresh noise at each: the slow truth that DDIM is compared with."""
    current, signal = noise, diffusion.signal
    for here in range(diffusion.length - 1, -1, -1):
        index = torch.full((len(current),), here)
        epsilon = predict_noise(module, diffusion, current, index, labels)
        now, left, beta = float(signal[here]), float(signal[here - 1]) if here else 1.0, float(diffusion.betas[here])
        clean, _ = clean_estimate(diffusion, current, epsilon, now)
        mean = (left**0.5 * beta * clean + (1 - beta) ** 0.5 * (1 - left) * current) / (1 - now)
        spread = (beta * (1 - left) / (1 - now)) ** 0.5
        current = mean + spread * torch.randn(mean.shape, generator=chance)
    return current


def clean_estimate(diffusion: Diffusion, current: Tensor, epsilon: Tensor, signal: float) -> tuple[Tensor, Tensor]:
    """The clean sample that epsilon implies, clipped where the model's data is bounded, and the epsilon that fits it."""
    clean = (current - (1 - signal) ** 0.5 * epsilon) / signal**0.5
    if diffusion.clip is None:
        return clean, epsilon
    clean = clean.clamp(-diffusion.clip, diffusion.clip)
    return clean, (current - signal**0.5 * clean) / (1 - signal) ** 0.5
