"""Probe-and-select in PyTorch: two small products, and for many scores a partial sort."""

import torch
from surgery.kernels.reference import probe_select as reference
from torch import Tensor

FEW = 1024
"""Up to so many scores a stable sort of all is quicker."""


def probed(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, shared: bool) -> tuple[Tensor, Tensor]:
    """`reference.probe_select`, of many rows the best without sorting the rest."""
    scores = reference.score(x, probes, dictionary, shared)
    few = scores.numel() <= FEW or scores.device.type != "cpu"
    return (reference.best if few else best)(scores, keep), scores


def best(scores: Tensor, keep: int) -> Tensor:
    """`reference.best`: all above the last of them, and of its equals the lowest."""
    ranked = torch.where(scores.isnan(), -1.0, scores)
    last = ranked.topk(keep, dim=1).values[:, -1:]
    above, equal = ranked > last, ranked == last
    room = keep - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(scores.shape[0], keep).to(torch.int32)
