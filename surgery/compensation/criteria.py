"""How much a coordinate of the conditioning vector matters, one score each."""

from collections.abc import Iterable

import torch
from torch import Tensor

from surgery.compensation.moments import Moments


def magnitude(chunks: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Mean of |c_j| over weighted rows of c: the ranking of Pham et al. (arXiv:2602.21596). Returns [D]."""
    total, weight = 0.0, 0.0
    for rows, weights in chunks:
        weights = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
        total = total + weights.double() @ rows.double().abs()
        weight += float(weights.sum())
    return total / weight


def activation(moments: Moments) -> Tensor:
    """Root mean square of the activated feature, √(E s_j²) = √(G_jj + μ_j²). Returns [D].

    Unlike |c|, it knows that SiLU makes a large negative coordinate nearly nothing.
    """
    return (moments.covariance.diagonal() + moments.mean.square()).sqrt()


def effect(moments: Moments, gram: Tensor, *, absorbed: bool = True) -> Tensor:
    """Size of what a feature adds to its consumers, rms(s_j) · ‖W_:j‖ with gram = Wᵀ W [D, D]. Returns [D].

    With `absorbed`, rms about the mean: a consumer's bias takes the mean over. Without, about zero: plain removal.
    """
    spread = moments.covariance.diagonal().sqrt() if absorbed else activation(moments)
    return spread * gram.diagonal().sqrt()


def random(width: int, seed: int) -> Tensor:
    """Uniform scores [D], the same for the same seed on any machine."""
    return torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ranking(scores: Tensor) -> Tensor:
    """Coordinates from the highest score to the lowest [D]; of equals the lower index comes first."""
    return torch.sort(scores, descending=True, stable=True).indices
