"""The rows a training learns from and the rows it is judged by, step by step and process by process."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.training.distillation import count
from surgery.training.settings import Settings

JUDGED, MOST_JUDGED = 0.1, 2048
"""The share of the rows that is never trained on, and how many are enough."""
SPLIT_SEED = 0


class Calibration(Protocol):
    """As `surgery.targets.calibration.Calibration`, a frozen dataclass."""

    inputs: Mapping[str, Tensor]
    targets: Tensor | None
    task: str | None
    batch: int
    rows: int

    def batches(self) -> Iterator[tuple[dict[str, Any], Tensor | None]]: ...
    def loss(self, outputs: Any, inputs: Mapping[str, Any], targets: Tensor | None = None) -> Tensor: ...
    def weight(self, inputs: Mapping[str, Any], targets: Tensor | None = None) -> int: ...


@dataclass(frozen=True, eq=False)
class Micro:
    """One pass of one process: keyword inputs, targets, and its shares of what the whole step's data loss, divergence
    from the teacher and penalty are means over. So a step's loss is the sum of its passes', each times its share."""

    inputs: dict[str, Any]
    targets: Tensor | None
    tokens: float
    taught: float
    rows: float


@dataclass(eq=False)
class Examples:
    """`training` and `judged` are row numbers of the calibration data; which are judged by depends on nothing else.

    Rows come in a random order, each once before any comes again; a step's rows depend on the seed and the step alone.
    Raises SurgeryError (S814) for fewer than two rows, or fewer rows a step than passes.
    """

    calibration: Calibration
    settings: Settings
    rank: int = 0
    world: int = 1
    training: Tensor = field(init=False)
    judged: Tensor = field(init=False)
    _orders: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        rows = self.calibration.rows
        if rows < 2:
            raise SurgeryError(
                f"{rows} row of calibration data: one part is trained on, another judges",
                code="S814",
                help="give more with `samples=` in the `data` clause",
            )
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(SPLIT_SEED))
        judged = min(max(min(math.ceil(JUDGED * rows), MOST_JUDGED), self.settings.batch), rows // 2)
        self.judged, self.training = order[:judged].sort().values, order[judged:].sort().values
        if self.batch < self.settings.accumulate * self.world:
            passes = f"accumulate={self.settings.accumulate} in {self.world} processes"
            raise SurgeryError(
                f"a step has {self.batch} rows, too few for {passes}",
                code="S814",
                help="raise batch=, lower accumulate=, or give more data with `samples=`",
            )

    @property
    def batch(self) -> int:
        """Rows of a step: as set, or all there are."""
        return min(self.settings.batch, len(self.training))

    def step(self, step: int) -> list[Micro]:
        """What this process does in a step."""
        parts = [self._part(rows) for rows in self.rows(step).tensor_split(self.settings.accumulate * self.world)]
        totals = [max(1, sum(part[place] for part in parts)) for place in (2, 3, 4)]
        first = self.rank * self.settings.accumulate
        return [
            Micro(*part[:2], *(share / total for share, total in zip(part[2:], totals, strict=True)))
            for part in parts[first : first + self.settings.accumulate]
        ]

    def rows(self, step: int) -> Tensor:
        """The rows of a step, of all processes."""
        places = range(step * self.batch, (step + 1) * self.batch)
        count = len(self.training)
        return self.training[torch.stack([self._order(place // count)[place % count] for place in places])]

    def held_out(self) -> Calibration:
        """The rows to judge by, as data to calibrate on."""
        return self._taken(self.judged, max(self.batch // self.settings.accumulate, 1))

    def _part(self, rows: Tensor) -> tuple[dict[str, Any], Tensor | None, int, int, int]:
        ((inputs, targets),) = self._taken(rows, len(rows)).batches()
        task = self.calibration.task
        return inputs, targets, self.calibration.weight(inputs, targets), count(task, inputs, targets), len(rows)

    def _taken(self, rows: Tensor, batch: int) -> Calibration:
        inputs = {name: value[rows] for name, value in self.calibration.inputs.items()}
        targets = None if self.calibration.targets is None else self.calibration.targets[rows]
        return replace(self.calibration, inputs=inputs, targets=targets, batch=batch)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            chance = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self._orders = {epoch: torch.randperm(len(self.training), generator=chance)} | {
                old: order for old, order in self._orders.items() if old == epoch - 1
            }
        return self._orders[epoch]
