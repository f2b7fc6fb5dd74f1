"""Forward selection of the coordinates that explain most of what the consumers compute."""

from dataclasses import dataclass

import torch
from torch import Tensor

EXHAUSTED = 1e-10  # share of its first variance below which a coordinate is known from the kept ones, float64's noise


@dataclass(frozen=True)
class Selection:
    """A nested choice: the best n coordinates are the first n of `order`.

    order  [D]      coordinates, the most useful first
    error  [D + 1]  share of E‖W(s − μ)‖² left unexplained when the first n are kept, n = 0 .. D
    """

    order: Tensor
    error: Tensor

    def keep(self, count: int) -> Tensor:
        """The kept coordinates [count] in ascending order."""
        return self.order[:count].sort().values


def consumer_gram(weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """Wᵀ diag(ω) W [D, D] in float64, for consumers W [M, D] and row importance ω [M] (1 each when not given)."""
    weight = weight.double()
    scaled = weight if importance is None else weight * importance.to(weight)[:, None]
    return scaled.T @ weight


def greedy(covariance: Tensor, gram: Tensor, count: int | None = None) -> Selection:
    """Nested order of coordinates, each the one that lowers E‖W(s − ŝ_K)‖² most once the rest is refit.

    With G = covariance [D, D] of the features, M = gram = Wᵀ diag(ω) W [D, D] and the residual
    R = G − G_:K G_KK⁻¹ G_K:, the error is tr(M R) and coordinate j takes (R M R)_jj / R_jj off it.
    R is never formed: its factor grows by a column v = R_:j / √R_jj per step (pivoted Cholesky), at O(D²) a step.
    Coordinates that never vary, or that the kept ones determine, come last by index: they are free to drop.
    After `count` steps (all when not given) the rest follows by what each alone would still take off.

    Orthogonal matching pursuit (Pati et al. 1993) with the exact gain (orthogonal least squares, Chen et al. 1989).
    """
    covariance, gram = covariance.double(), gram.double()
    width = len(covariance)
    steps = width if count is None else min(count, width)
    variance = covariance.diagonal().clone()
    floor = EXHAUSTED * variance + torch.finfo(torch.float64).tiny
    moved = ((covariance @ gram) * covariance).sum(1)
    factor = covariance.new_zeros(width, steps)
    free = torch.ones(width, dtype=torch.bool)
    total = float((covariance * gram).sum())
    order, left = [], [total]
    for step in range(steps):
        gain = torch.where(free & (variance > floor), moved.clamp(min=0) / variance.clamp(min=floor), -1.0)
        best = int((gain == gain.max()).nonzero()[0])
        if gain[best] <= 0:
            break
        past = factor[:, :step]
        column = (covariance[:, best] - past @ past[best]) / variance[best].sqrt()
        pull = gram @ column
        push = covariance @ pull - past @ (past.T @ pull)
        moved += column * (column * (column @ pull) - 2 * push)
        variance -= column.square()
        factor[:, step] = column
        free[best] = False
        order.append(best)
        left.append(max(left[-1] - float(gain[best]), 0.0))
    return _complete(order, left, free, torch.where(variance > floor, moved / variance.clamp(min=floor), 0.0), total)


def _complete(order: list[int], left: list[float], free: Tensor, gain: Tensor, total: float) -> Selection:
    rest = torch.where(free, gain.clamp(min=0), -1.0)
    tail = torch.sort(rest, descending=True, stable=True).indices[: len(free) - len(order)]
    error = torch.tensor(left + [left[-1]] * len(tail), dtype=torch.float64)
    return Selection(torch.cat([torch.tensor(order, dtype=torch.long), tail]), error / (total or 1.0))
