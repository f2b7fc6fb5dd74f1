"""Fold the dropped features into the weights of the kept ones, in closed form."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from surgery.compensation.greedy import consumer_gram
from surgery.compensation.moments import Moments


class Compensated(NamedTuple):
    """weight W' [M, n], bias b' [M] (None if there was none), error: unexplained share of the consumers' variance."""

    weight: Tensor
    bias: Tensor | None
    error: float


def least_squares(
    moments: Moments,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    *,
    ridge: float = 1e-6,
    gram: Tensor | None = None,
) -> Compensated:
    """The consumers that need only the features `keep` [n] and come closest to the old ones, in float64.

        W', b' = argmin E‖W s + b − W' s_K − b'‖² + λ‖W' − W_K‖²,   λ = ridge · tr(G) / D

    With C = G_DK (G_KK + λ)⁻¹, which predicts the dropped features D from the kept K:

        W' = W_K + W_D C        b' = b + W μ − W' μ_K        error = E‖Δ(s − μ)‖² / E‖W(s − μ)‖²

    so keeping everything returns W and b. Without a bias the mean cannot be absorbed: moments are about zero then.

    weight [M, D], bias [M] or None, keep [n] distinct indices. ValueError for an index twice or out of range.
    gram [D, D] is `consumer_gram(weight)` where it is at hand; with row importance in it, the error is weighted so
    (W' and b' do not depend on it: every row has a regression of its own).
    """
    kept, dropped = _partition(keep, moments.width)
    weight = weight.double()
    spread = moments.second if bias is None else moments.covariance
    predictor = _predict(spread, kept, dropped, ridge)
    small = weight[:, kept] + weight[:, dropped] @ predictor
    if bias is not None:
        bias = bias.double() + weight @ moments.mean - small @ moments.mean[kept]
    gram = consumer_gram(weight) if gram is None else gram
    return Compensated(small, bias, _error(spread, gram, predictor, kept, dropped))


def unchanged(
    moments: Moments, weight: Tensor, bias: Tensor | None, keep: Tensor, *, gram: Tensor | None = None
) -> Compensated:
    """The consumers with the dropped columns simply gone: W_K and b, and what that costs (about zero, not the mean)."""
    kept, dropped = _partition(keep, moments.width)
    weight = weight.double()
    gram = consumer_gram(weight) if gram is None else gram
    lost = float((gram[dropped][:, dropped] * moments.second[dropped][:, dropped]).sum())
    spread = moments.second if bias is None else moments.covariance
    error = _ratio(lost, float((gram * spread).sum()))
    return Compensated(weight[:, kept], None if bias is None else bias.double(), error)


def split(weight: Tensor, bias: Tensor | None, rows: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
    """Stacked consumers [ΣM_i, n] and [ΣM_i] apart again, M_i = rows[i] each, in the order they were stacked."""
    if sum(rows) != len(weight):
        raise ValueError(f"{len(weight)} stacked rows cannot be split into {list(rows)}")
    biases = [None] * len(rows) if bias is None else bias.split(list(rows))
    return list(zip(weight.split(list(rows)), biases, strict=True))


def _partition(keep: Tensor, width: int) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(width, dtype=torch.bool)
    if len(keep) and not 0 <= int(keep.min()) <= int(keep.max()) < width:
        raise ValueError(f"kept coordinates reach from {int(keep.min())} to {int(keep.max())}; there are {width}")
    mask[keep] = True
    if int(mask.sum()) != len(keep):
        raise ValueError(f"{len(keep) - int(mask.sum())} of {len(keep)} kept coordinates are named twice")
    return keep, (~mask).nonzero().flatten()


def _predict(spread: Tensor, kept: Tensor, dropped: Tensor, ridge: float) -> Tensor:
    """C [D − n, n] by eigenvectors, so that a singular G_KK needs no luck: directions without variance predict nothing."""
    values, vectors = torch.linalg.eigh(spread[kept][:, kept])
    values = values + ridge * spread.diagonal().mean()
    noise = len(spread) * torch.finfo(torch.float64).eps * spread.diagonal().max()
    inverse = torch.where(values > noise, 1 / values, 0.0)
    return spread[dropped][:, kept] @ (vectors * inverse) @ vectors.T


def _error(spread: Tensor, gram: Tensor, predictor: Tensor, kept: Tensor, dropped: Tensor) -> float:
    """tr(M_DD Q) / tr(M G) with Q the second moment of s_D − C s_K: a sum of squares, nothing cancels."""
    miss = spread.new_zeros(len(dropped), len(spread))
    miss[:, dropped] = torch.eye(len(dropped), dtype=spread.dtype)
    miss[:, kept] = -predictor
    lost = float((gram[dropped][:, dropped] * (miss @ spread @ miss.T)).sum())
    return _ratio(lost, float((gram * spread).sum()))


def _ratio(lost: float, whole: float) -> float:
    return max(lost, 0.0) / whole if whole > 0 else 0.0
