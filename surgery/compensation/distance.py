"""How far a narrower conditioning path is from the old one, as a function that can be descended."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgery.compensation.conditioning import Activation, Conditioning

REACH = 1e-3  # smallest singular value of h, relative to the largest, along which the time MLP's last layer moves


@dataclass(frozen=True)
class NarrowPath:
    """c' = τ_K(t) + Q(t) X + E'[y], with X and E' free.

    Q [T, r] are the principal components of (h, 1) over time, scaled to unit mean square: moving along them is well
    conditioned, and X maps back to A' and a' exactly. Components of h too faint to be trusted in float32 stay still.
    """

    start: Conditioning
    time: Tensor
    basis: Tensor
    back: Tensor
    move: Tensor
    table: Tensor

    @classmethod
    def of(cls, conditioning: Conditioning, keep: Tensor) -> "NarrowPath":
        start = conditioning.keep(keep)
        hidden = conditioning.hidden.double()
        if conditioning.time_bias is not None:
            hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        left, values, right = torch.linalg.svd(hidden, full_matrices=False)
        rank = int((values > REACH * values[0]).sum())
        scale = len(hidden) ** 0.5
        move = hidden.new_zeros(rank, len(keep)).requires_grad_()
        table = start.table.double().clone().requires_grad_()
        return cls(start, start.time, left[:, :rank] * scale, right[:rank].T * (scale / values[:rank]), move, table)

    @property
    def variables(self) -> list[Tensor]:
        return [self.move, self.table]

    def rows(self, times: Tensor, classes: Tensor) -> Tensor:
        """c' [N, n] at index pairs, differentiable in X and E'."""
        return (self.time + self.basis @ self.move)[times] + self.table[classes]

    def conditioning(self) -> Conditioning:
        """What has been reached, as plain weights."""
        change = (self.back @ self.move.detach()).T
        hidden = self.start.hidden.shape[1]
        bias = None if self.start.time_bias is None else self.start.time_bias.double() + change[:, hidden]
        weight = self.start.time_weight.double() + change[:, :hidden]
        return replace(self.start, time_weight=weight, time_bias=bias, table=self.table.detach().clone())


@dataclass(frozen=True)
class Distance:
    """Unexplained share of the consumers' variance over some pairs (t, y), W' and b' eliminated.

    times, classes [N]   the pairs          share  [N]     √ of their weights, which sum to one
    targets        [N, r] √w (s − μ) P with P Pᵀ = M where the features vary: Wᵀ diag(ω) W without its M rows
    """

    times: Tensor
    classes: Tensor
    share: Tensor
    targets: Tensor
    penalty: float
    activation: Activation

    @classmethod
    def of(cls, wide: Conditioning, projection: Tensor, pairs: tuple[Tensor, Tensor], penalty: float) -> "Distance":
        times, classes = pairs
        weights = torch.ones(len(times), dtype=torch.float64) if wide.weight is None else wide.weight[pairs].double()
        share = (weights / weights.sum()).sqrt()
        seen = wide.activation(wide.time[times] + wide.table.double()[classes]) @ projection
        return cls(times, classes, share, _centred(seen, share), penalty, wide.activation)

    def __call__(self, path: NarrowPath) -> Tensor:
        """min over X of (‖Y − Φ X‖² + λ‖X‖²) / ‖Y‖². X is held still in the gradient: at its minimum it has none."""
        features = _centred(self.activation(path.rows(self.times, self.classes)), self.share)
        with torch.no_grad():
            second = features.T @ features
            second.diagonal().add_(self.penalty)
            solution = torch.linalg.solve(second, features.T @ self.targets)
        left = (self.targets - features @ solution).square().sum() + self.penalty * solution.square().sum()
        return left / self.targets.square().sum()


def principal(covariance: Tensor, gram: Tensor, silent: float) -> Tensor:
    """P [D, r]: what the consumers see of the features, tr(Pᵀ G P) = tr(M G) but for a share below `silent`."""
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()
    power, mixing = torch.linalg.eigh(root.T @ covariance @ root)
    heard = power.clamp(min=0).cumsum(0) > silent * power.sum()
    return root @ mixing[:, heard]


def _centred(rows: Tensor, share: Tensor) -> Tensor:
    return (rows - share.square() @ rows) * share[:, None]
