"""What was decided for an action once the weights were looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """One way to do it and its error: the share of the consumers' variance left unexplained, over the grid of timesteps
    and classes or over calibration rows held out; 0 where weights alone decided."""

    by: str
    compensate: str
    error: float

    def document(self, chosen: "Candidate") -> dict:
        return {"by": self.by, "compensate": self.compensate, "error": self.error, "chosen": self == chosen}


@dataclass(frozen=True, eq=False)
class Choice:
    """`keep` [n] coordinates, ascending; new weights of consumers by weight name, (W' [M, n], b' [M] or None); new
    producers' tensors by name, at their compact size, with the axis that was cut (None where none was); all candidates
    that were measured; notes for the report; of a vocabulary the `unknown` token, an old id read for what is gone."""

    keep: Tensor
    chosen: Candidate
    candidates: tuple[Candidate, ...] = ()
    linears: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[Tensor, int | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unknown: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What a report says of it."""
        chosen = {"by": self.chosen.by, "compensate": self.chosen.compensate, "kept": self.keep.tolist()}
        return chosen | {"error": self.chosen.error}
