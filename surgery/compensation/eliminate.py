"""Backward elimination: which features of a layer's input can go, one after the other, if the rest makes up for it."""

import torch
from torch import Tensor

ROUNDS = 128


def eliminate(
    spread: Tensor, weight: Tensor, groups: Tensor, count: int, *, pull: Tensor | None = None, ridge: float = 1e-4
) -> Tensor:
    """`count` groups in the order in which they go, each the one whose loss costs least after refitting what is left.

    spread [D, D]  second moments of the features        weight [M, D]  what reads them
    groups [U, d]  the features of each group, every feature in one group at most
    pull [M, D]    what the reader should say beyond W x, against the features (see `reconstruct`)

    With H = spread + λ and W* = W + pull H⁻¹ refitted to what is left, group g costs tr(W*_g (H⁻¹_gg)⁻¹ W*_gᵀ) and
    leaves W* − W*_g (H⁻¹_gg)⁻¹ H⁻¹_g: behind, likewise H⁻¹: the structured optimal brain surgeon (Hassibi & Stork
    1993; ZipLM, Kurtic et al. 2023). Where more than 128 are to go, several of the cheapest go at a time.
    """
    return _eliminated(_inverse(spread, ridge), weight, groups, count, pull)[0]


def ladder(spread: Tensor, weight: Tensor, groups: Tensor, *, ridge: float = 1e-4) -> Tensor:
    """What each group costs in that order [U], the last one but for what is then left, after those before it."""
    return _eliminated(_inverse(spread, ridge), weight, groups, len(groups), None)[1]


def saliency(spread: Tensor, weight: Tensor, groups: Tensor, *, ridge: float = 1e-4) -> Tensor:
    """What each group [U] would cost if it alone went and the rest made up for it."""
    return _costs(weight.double(), _inverse(spread, ridge), groups)


def _eliminated(
    inverse: Tensor, weight: Tensor, groups: Tensor, count: int, pull: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`count` groups in the order in which they go, and what each costs."""
    fitted = weight.double().clone()
    if pull is not None:
        fitted += pull.double() @ inverse
    left = torch.ones(len(groups), dtype=torch.bool)
    gone, paid = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
    while (missing := count - sum(map(len, gone))) > 0:
        costs = torch.where(left, _costs(fitted, inverse, groups), torch.inf)
        chosen = torch.sort(costs, stable=True).indices[: min(missing, -(-count // ROUNDS))]
        left[chosen] = False
        gone.append(chosen)
        paid.append(costs[chosen])
        _drop(fitted, inverse, groups[chosen].flatten())
    return torch.cat(gone), torch.cat(paid)


def _inverse(spread: Tensor, ridge: float) -> Tensor:
    damped = spread.double().clone()
    damped.diagonal().add_(ridge * float(damped.diagonal().mean()) + torch.finfo(torch.float64).tiny)
    return torch.linalg.inv(damped)


def _costs(fitted: Tensor, inverse: Tensor, groups: Tensor) -> Tensor:
    """tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ) of every group [U]; of groups already gone a number that means nothing."""
    if groups.shape[1] == 1:
        return fitted.square().sum(0)[groups[:, 0]] / inverse.diagonal()[groups[:, 0]].clamp(min=1e-300)
    blocks = inverse[groups[:, :, None], groups[:, None, :]]
    columns = fitted[:, groups].permute(1, 2, 0)
    return (columns * torch.linalg.lstsq(blocks, columns, driver="gelsd").solution).sum((1, 2))


def _drop(fitted: Tensor, inverse: Tensor, index: Tensor) -> None:
    """The features are gone from W* and H⁻¹, in place; what is left of their rows and columns is zero."""
    rows = inverse[index]
    solved = torch.linalg.solve(rows[:, index], rows)
    fitted -= fitted[:, index] @ solved
    inverse -= rows.T @ solved
    fitted[:, index] = 0
    inverse[index] = 0
    inverse[:, index] = 0
