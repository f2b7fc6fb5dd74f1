"""Small measures of a set of vectors, all in float64."""

import math

import torch
from torch import Tensor

GAUSSIAN_NPR = 2 / math.pi
"""Normalised participation ratio of an iid Gaussian vector: (E|x|)² / E x² = 2/π."""


def participation_ratio(vectors: Tensor) -> Tensor:
    """How many coordinates carry a vector: PR = (Σ|v_i|)² / Σ v_i², between 1 (one-hot) and d (constant).

    vectors [..., d] → [...], in coordinates. On absolute values, not squares (Pham et al., arXiv:2602.21596).
    A zero vector has PR 0.
    """
    magnitude = vectors.double().abs()
    energy = magnitude.square().sum(-1)
    return torch.where(energy > 0, magnitude.sum(-1).square() / energy.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def normalised_participation_ratio(vectors: Tensor) -> Tensor:
    """nPR = PR / d, between 1/d and 1; an iid Gaussian vector has 2/π. vectors [..., d] → [...]."""
    return participation_ratio(vectors) / vectors.shape[-1]


def pairwise_cosine(vectors: Tensor) -> Tensor:
    """S_ij = ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖). vectors [K, d] → [K, K] float64; a zero vector has cosine 0 with all."""
    units = _units(vectors)
    return (units @ units.T).clamp(-1.0, 1.0)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries i ≠ j of a square matrix [K, K] → [K(K-1)]."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]


def mean_cosine(vectors: Tensor) -> float:
    """Mean off-diagonal cosine in O(K·d): (‖Σ u_i‖² − Σ ‖u_i‖²) / (K (K−1)) with u_i = v_i / ‖v_i‖. vectors [K, d]."""
    units = _units(vectors)
    count = len(units)
    return float((units.sum(0).square().sum() - units.square().sum()) / (count * (count - 1)))


def tail_share(vectors: Tensor, thresholds: Tensor) -> Tensor:
    """s_tail(τ) = #{|c_i| < τ} / d, averaged over the vectors (Pham et al., body of the text).

    vectors [K, d], thresholds [M] → [M], each between 0 and 1 and rising with τ.
    """
    ordered = vectors.double().abs().flatten().sort().values
    return torch.searchsorted(ordered, thresholds.double().contiguous(), right=False).double() / ordered.numel()


def head_share(vectors: Tensor, thresholds: Tensor) -> Tensor:
    """s_head(τ) = #{|c_i| > τ} / d, averaged over the vectors. vectors [K, d], thresholds [M] → [M]."""
    ordered = vectors.double().abs().flatten().sort().values
    return 1 - torch.searchsorted(ordered, thresholds.double().contiguous(), right=True).double() / ordered.numel()


def predicted_cosine(time: Tensor, classes: Tensor) -> float:
    """Mean class cosine of c = t + y that the shared t alone explains.

        cos(c) ≈ (R² + 2p + k r²) / (R² + 2p + r²)

    with R = ‖t‖, r = mean ‖y‖, k = mean pair cosine of y, p = mean ⟨t, y⟩. time [d], classes [K, d].
    Exact when all y have one norm and one projection on t.
    """
    time, classes = time.double(), classes.double()
    length = time.norm().square() + 2 * (classes @ time).mean()
    own = classes.norm(dim=-1).mean().square()
    if length + own == 0:
        return 0.0
    return float((length + mean_cosine(classes) * own) / (length + own))


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's ρ: the Pearson correlation of average ranks. Both [d]; 0 where one of them is constant."""
    a, b = _ranks(left), _ranks(right)
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, group, count = torch.unique(values.double(), return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[group]


def _units(vectors: Tensor) -> Tensor:
    vectors = vectors.double()
    norms = vectors.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, vectors / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
