"""Streaming mean and centred second moment of feature rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What regression needs to know of weighted feature rows s_g, in float64 and independent of how many there were.

    count       rows seen
    weight      Σ w_g
    mean        [D]     μ = Σ w_g s_g / Σ w_g
    covariance  [D, D]  G = Σ w_g (s_g − μ)(s_g − μ)ᵀ / Σ w_g
    """

    count: int
    weight: float
    mean: Tensor
    covariance: Tensor

    @classmethod
    def gather(cls, chunks: Iterable[Tensor | tuple[Tensor, Tensor | None]]) -> "Moments":
        """Moments of an iterable of rows [n, D], or of pairs (rows [n, D], weights [n]); one chunk is held at a time."""
        parts = (cls.of(*chunk) if isinstance(chunk, tuple) else cls.of(chunk) for chunk in chunks)
        first = next(parts, None)
        if first is None:
            raise ValueError("moments of nothing: no chunk of rows was given")
        return reduce(cls.merge, parts, first)

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> "Moments":
        """Moments of one chunk of rows [n, D] with weights [n] (1 each when not given; ≥ 0, not all 0)."""
        rows = rows.double()
        weights = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
        total = float(weights.sum())
        if not (isfinite(total) and total > 0) or bool((weights < 0).any()):
            raise ValueError(f"weights of {len(rows)} rows must be finite, ≥ 0 and not all 0")
        mean = weights @ rows / total
        centred = (rows - mean) * (weights / total).sqrt()[:, None]
        return cls(len(rows), total, mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the rows of both (Chan, Golub & LeVeque 1983)."""
        total = self.weight + other.weight
        mine, theirs = self.weight / total, other.weight / total
        shift = other.mean - self.mean
        covariance = mine * self.covariance + theirs * other.covariance
        covariance.addr_(shift, shift, alpha=mine * theirs)
        return Moments(self.count + other.count, total, self.mean + theirs * shift, covariance)

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def second(self) -> Tensor:
        """Σ w_g s_g s_gᵀ / Σ w_g [D, D]: about the origin, not about the mean."""
        return torch.addr(self.covariance, self.mean, self.mean)
