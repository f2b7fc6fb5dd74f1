"""What comes of a training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgery.training.objective import Evaluated

FINISHED = "finished"


@dataclass(frozen=True, eq=False)
class Trained:
    """The best state that was evaluated, not the last.

    weights  by the graph's own tensor names, adapters merged, in the dtypes the model stores
    history  a row per step: step, loss, penalty, rate, seconds, what the objective tells; rows of evaluated states also
             hold held_out_loss, held_out_penalty, feasible. The loss of a row is of the batch its step learned from.
    start    the state before the first step; `best` the one whose weights these are
    state    "finished", or "stopped: …" with the reason
    notes    for the report
    """

    weights: Mapping[str, Tensor]
    history: tuple[dict[str, Any], ...]
    start: Evaluated
    best: Evaluated
    state: str = FINISHED
    notes: tuple[str, ...] = ()

    @property
    def best_step(self) -> int:
        """Steps done in the best state; 0 is the beginning."""
        return self.best.step

    @property
    def finished(self) -> bool:
        return self.state == FINISHED
