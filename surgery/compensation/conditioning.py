"""How a conditioning vector comes about: the parts that a narrower one is refitted in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.compensation.grid import Grid

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Conditioning:
    """c(t, y) = A h(t) + a + E[y], and what the consumers read is act(c).

    hidden       [T, H]  h, what enters the last layer of the time MLP, one row per timestep
    time_weight  [D, H]  A
    time_bias    [D]     a, or None
    table        [V, D]  E, the null class included
    weight       [T, V]  how much a pair (t, y) counts, or None for all alike
    """

    hidden: Tensor
    time_weight: Tensor
    time_bias: Tensor | None
    table: Tensor
    weight: Tensor | None = None
    activation: Activation = F.silu

    @property
    def width(self) -> int:
        return self.table.shape[1]

    @property
    def time(self) -> Tensor:
        """τ(t) = A h(t) + a [T, D], in float64."""
        bias = None if self.time_bias is None else self.time_bias.double()
        return F.linear(self.hidden.double(), self.time_weight.double(), bias)

    @property
    def grid(self) -> Grid:
        return Grid(self.time, self.table, self.weight)

    def features(self, chunk: int = 8192) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Pairs (act(c) [n, D], weights [n] or None), as `Moments.gather` takes them."""
        for rows, weights in self.grid.rows(chunk):
            yield self.activation(rows), weights

    def keep(self, coordinates: Tensor) -> "Conditioning":
        """The same with only these coordinates of c: rows of A and a, columns of E."""
        bias = None if self.time_bias is None else self.time_bias[coordinates]
        weight, table = self.time_weight[coordinates], self.table[:, coordinates]
        return replace(self, time_weight=weight, time_bias=bias, table=table)

    @property
    def counted(self) -> int:
        """How many pairs (t, y) count."""
        return len(self.grid) if self.weight is None else int((self.weight > 0).sum())

    def pairs(self, limit: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices (t, y) of every pair that counts; of more than `limit`, a draw with as many timesteps per class."""
        counts = torch.ones(len(self.hidden), len(self.table)) if self.weight is None else self.weight
        if self.counted <= limit:
            return (counts > 0).nonzero(as_tuple=True)
        lots = torch.rand(counts.shape, generator=draw, dtype=torch.float64)
        each = max(1, limit // counts.shape[1])
        times = torch.where(counts > 0, lots, -1.0).topk(min(each, len(counts)), dim=0).indices
        classes = torch.arange(counts.shape[1]).expand_as(times)
        drawn = counts[times, classes] > 0
        return times[drawn], classes[drawn]
