"""What a layer was seen to read, and how far what it says has drifted: sums in float64, whatever the number of rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Observed:
    """Sums over rows x [D] a layer reads, each with a drift e [M] its output should have besides; 0 where none is told.

    Rows are summed about `start`, the first mean seen, so that nothing cancels: their products are made in their own
    dtype, a chunk at a time, and added up in float64.

    count   rows          total [D] Σ (x − s)          product [D, D] Σ (x − s)(x − s)ᵀ
    drift [M] Σ e         cross [M, D] Σ e (x − s)ᵀ     power Σ ‖e‖²
    """

    start: Tensor
    outputs: int
    count: int = 0
    total: Tensor | float = 0.0
    product: Tensor | float = 0.0
    drift: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    power: float = 0.0

    def add(self, rows: Tensor, drift: Tensor | None = None) -> None:
        """Rows [r, D] and their drift [r, M] join; half precision is made float32 first."""
        rows = rows if rows.dtype.itemsize > 2 else rows.float()
        centred = rows - self.start.to(rows)
        self.count += len(rows)
        self.total = self.total + centred.sum(0, dtype=torch.float64)
        self.product = self.product + (centred.T @ centred).double()
        if drift is not None:
            drift = drift.to(rows)
            self.drift = self.drift + drift.sum(0, dtype=torch.float64)
            self.cross = self.cross + (drift.T @ centred).double()
            self.power += float(drift.double().square().sum())

    def __add__(self, other: "Observed") -> "Observed":
        """The rows of both; both have the same start."""
        names = ("count", "total", "product", "drift", "cross", "power")
        return Observed(self.start, self.outputs, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def settled(self) -> "Settled":
        """The means and second moments so far. ValueError where nothing was seen."""
        if not self.count:
            raise ValueError("moments of nothing: no rows were given")
        offset = self.total / self.count
        mean = self.start + offset
        covariance = self.product / self.count - torch.outer(offset, offset)
        zeros = torch.zeros(self.outputs, len(mean), dtype=torch.float64, device=mean.device)
        drift = self.drift / self.count + zeros[:, 0]
        cross = self.cross / self.count + zeros - torch.outer(drift, offset)
        return Settled(self.count, mean.cpu(), covariance.cpu(), drift.cpu(), cross.cpu(), self.power / self.count)


@dataclass(frozen=True, eq=False)
class Settled:
    """mean μ [D] and covariance G [D, D] of x; mean [M] and covariance with x [M, D] of the drift e; power E‖e‖²."""

    count: int
    mean: Tensor
    covariance: Tensor
    drift: Tensor
    cross: Tensor
    power: float

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], about zero."""
        return torch.addr(self.covariance, self.mean, self.mean)

    @property
    def cross_second(self) -> Tensor:
        """E[e xᵀ], about zero."""
        return torch.addr(self.cross, self.drift, self.mean)
