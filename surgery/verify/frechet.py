"""The Fréchet distance between two sets of features, each taken as a Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """`mean` [D] and `covariance` [D, D], both float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """The fit to features [N, D], N >= 2."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"a covariance needs features [N >= 2, D], got {list(features.shape)}")
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^1/2), never negative.

    tr((A B)^1/2) is the nuclear norm of A^1/2 B^1/2: singular values need no square root of a product that
    is not symmetric, and lose no half of the digits where a covariance is singular.
    """
    overlap = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
