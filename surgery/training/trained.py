"""What comes of a training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgery.training.objective import Evaluated

FINISHED = "finished"
POINTS = 500
"""Rows of a history in a report; evaluated ones all stay."""


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

    def finding(self, what: str, *, dense: float | None = None, target: float | None = None) -> dict[str, Any]:
        """The training for a report, without what the clock says: `what` names it, `dense` is the loss of the model it
        began with, `target` what the loss was allowed to be."""
        every = max(1, -(-len(self.history) // POINTS))
        kept = [row for row in self.history if row["step"] % every == 0 or "held_out_loss" in row]
        start = {"step": 0, "held_out_loss": self.start.loss, "feasible": self.start.feasible}
        start |= {} if self.start.penalty is None else {"held_out_penalty": self.start.penalty}
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in kept]
        told = {"kind": "training", "what": what, "history": [start, *rows], "dense": dense, "target": target}
        return told | {"best_step": self.best_step, "state": self.state}
