"""The grid of conditional vectors over timesteps × classes, and how many directions it fills."""

from collections.abc import Callable

import torch
from torch import Tensor

from surgery.analyses.rounding import rounded

GRID_POINTS = 8192


def conditioning_grid(time: Tensor, classes: Tensor, limit: int = GRID_POINTS) -> Tensor:
    """c = t + y for every timestep and class, thinned to `limit` points on a golden-ratio lattice where there are more.

    time [T, D], classes [K, D] → [min(T·K, limit), D]. On the lattice every timestep meets an even share of classes.
    """
    if len(time) * len(classes) <= limit:
        return (time[:, None] + classes).flatten(0, 1)
    index = torch.arange(limit, dtype=torch.float64)
    steps = (index * len(time) / limit).long()
    labels = ((index * ((5**0.5 - 1) / 2)).frac() * len(classes)).long()
    return time[steps] + classes[labels]


def variance_directions(time: Tensor, classes: Tensor, activation: Callable[[Tensor], Tensor]) -> dict:
    """How many principal directions hold 99 % and 99.8 % of the variance of activation(c) over the grid.

    time [T, D], classes [K, D]. `cumulative` [min(D, points)] is the share held by the first 1, 2, … directions.
    """
    values = activation(conditioning_grid(time, classes))
    centred = values - values.mean(0)
    wide = centred.shape[1] > len(centred)
    spectrum = torch.linalg.eigvalsh(centred @ centred.T if wide else centred.T @ centred).flip(0).clamp(min=0)
    total = spectrum.sum()
    cumulative = spectrum.cumsum(0) / total if total > 0 else torch.ones_like(spectrum)
    return {
        "points": len(values),
        "of": len(time) * len(classes),
        "for_99": int((cumulative < 0.99).sum()) + 1,
        "for_998": int((cumulative < 0.998).sum()) + 1,
        "cumulative": rounded(cumulative),
    }
