"""A layer that reads fewer features goes on saying what it said, in closed form from what it was seen to read.

The layer computes t = W x + b of features x [D]. What it should say is t + e: e [M] is how far the network has drifted
from the original by what was cut before, zero for the first cut.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from surgery.compensation.observed import Settled

RIDGE = 1e-4


class Reconstructed(NamedTuple):
    """weight W' [M, n] and bias b' [M] (None if there was none), in float64."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer as least squares sees it: weight W [M, D], bias b [M] or None, both float64 on the CPU."""

    weight: Tensor
    bias: Tensor | None

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def spread(self, seen: Settled) -> Tensor:
        """Second moments of x [D, D]: about the mean where a bias takes the mean over, else about zero."""
        return seen.second if self.bias is None else seen.covariance

    def pull(self, seen: Settled) -> Tensor:
        """E[e xᵀ] [M, D], likewise: what of the drift the features can tell."""
        return seen.cross_second if self.bias is None else seen.cross


def reconstruct(reader: Reader, seen: Settled, keep: Tensor, ridge: float = RIDGE) -> Reconstructed:
    """The layer that reads the features `keep` [n] alone and comes closest to t + e, in float64.

        W', b' = argmin E‖t + e − W' x_K − b'‖² + λ‖W' − W_K‖²,   λ = ridge · tr(G) / D
        W' = W_K + (W_D G_DK + E[e x_Kᵀ]) (G_KK + λ)⁻¹        b' = E[t + e] − W' μ_K

    G is the covariance of x; without a bias second moments about zero take its place. By Cholesky; by eigenvectors
    where G_KK is too singular for it.
    """
    spread = reader.spread(seen)
    gone = torch.ones(reader.width, dtype=torch.bool).index_fill(0, keep, False).nonzero()[:, 0]
    asked = reader.weight[:, gone] @ spread[gone][:, keep] + reader.pull(seen)[:, keep]
    weight = reader.weight[:, keep] + _solve(spread[keep][:, keep], asked, ridge * float(spread.diagonal().mean()))
    if reader.bias is None:
        return Reconstructed(weight, None)
    said = reader.weight @ seen.mean + reader.bias + seen.drift
    return Reconstructed(weight, said - weight @ seen.mean[keep])


def without(reader: Reader, keep: Tensor) -> Reconstructed:
    """The layer with the columns simply gone."""
    return Reconstructed(reader.weight[:, keep], reader.bias)


def unexplained(reader: Reader, made: Reconstructed, seen: Settled, keep: Tensor) -> float:
    """E‖t + e − W' x_K − b'‖² as a share of the spread of t + e, on rows it need not have been fitted on."""
    missed = reader.weight.clone()
    missed[:, keep] -= made.weight
    lost = _power(missed, seen.second, seen.cross_second, seen.power)
    if reader.bias is not None:
        shift = reader.bias - made.bias
        lost += float((shift * (shift + 2 * (missed @ seen.mean + seen.drift))).sum())
    power = seen.power if reader.bias is None else seen.power - float(seen.drift.square().sum())
    whole = _power(reader.weight, reader.spread(seen), reader.pull(seen), power)
    return max(lost, 0.0) / whole if whole > 0 else 0.0


def _power(weight: Tensor, second: Tensor, cross: Tensor, power: float) -> float:
    """E‖W x + e‖²."""
    return float(((weight @ second + 2 * cross) * weight).sum()) + power


def _solve(matrix: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """X [M, n] with X (G + λ) = wanted, G [n, n] symmetric and not negative."""
    damped = matrix.clone()
    damped.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not int(failed):
        return torch.cholesky_solve(wanted.T, factor).T
    values, vectors = torch.linalg.eigh(damped)
    noise = len(matrix) * torch.finfo(matrix.dtype).eps * values.abs().max()
    return (wanted @ vectors) * torch.where(values > noise, 1 / values, 0.0) @ vectors.T
