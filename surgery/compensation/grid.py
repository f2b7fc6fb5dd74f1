"""Every conditioning vector a class-conditional network can see: timesteps × classes."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """c(t, y) = τ(t) + E[y] for every timestep and class, generated in chunks and never held as a whole.

    time    [T, D]  τ, one row per timestep
    table   [V, D]  E, one row per class, the null class included
    weight  [T, V]  how much a pair counts, or None for all alike
    """

    time: Tensor
    table: Tensor
    weight: Tensor | None = None

    def __post_init__(self):
        if self.time.shape[1:] != self.table.shape[1:]:
            raise ValueError(f"time {tuple(self.time.shape)} and table {tuple(self.table.shape)} differ in width")
        if self.weight is not None and self.weight.shape != (len(self.time), len(self.table)):
            raise ValueError(
                f"weight {tuple(self.weight.shape)} does not fit {len(self.time)} timesteps × {len(self.table)} classes"
            )

    def __len__(self) -> int:
        return len(self.time) * len(self.table)

    def rows(self, chunk: int = 8192) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Pairs (c [n, D], weights [n] or None) of about `chunk` rows, timestep by timestep, in float64."""
        step = max(1, chunk // len(self.table))
        table = self.table.double()
        for start in range(0, len(self.time), step):
            time = self.time[start : start + step].double()
            weight = None if self.weight is None else self.weight[start : start + step].double().flatten()
            if weight is None or weight.any():
                yield (time[:, None] + table).flatten(0, 1), weight
