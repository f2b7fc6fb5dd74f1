"""How well a diffusion model predicts noise on held-out samples."""

from typing import Any

import torch
from torch import Tensor

from surgery.models.diffusion import Diffusion
from surgery.verify.sampler import predict_noise


@torch.no_grad()
def denoising_loss(
    module: Any, diffusion: Diffusion, clean: Tensor, labels: Tensor, *, seed: int, draws: int = 8, batch: int = 300
) -> float:
    """Mean squared error of epsilon over clean samples [N, C, H, W], each noised `draws` times.

    Timesteps are stratified: draw k of a sample falls into the k-th of `draws` equal parts of the schedule, so
    that the figure varies little with the seed. Noise and timesteps depend on the seed alone.
    """
    chance = torch.Generator().manual_seed(seed)
    total, count = 0.0, len(clean)
    for draw in range(draws):
        place = (draw + torch.rand(count, generator=chance, dtype=torch.float64)) / draws
        index = (place * diffusion.length).long().clamp(max=diffusion.length - 1)
        noise = torch.randn(clean.shape, generator=chance)
        noised = diffusion.noised(clean, noise, index)
        for part in torch.arange(count).split(batch):
            predicted = predict_noise(module, diffusion, noised[part], index[part], labels[part])
            total += float((predicted - noise[part]).double().square().flatten(1).mean(1).sum())
    return total / (draws * count)
