"""What is minimised, and which of the states on the way is the best."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Evaluated:
    """A state on rows that are never trained on: mean loss, and what the graph returned as its penalty, if anything.
    `feasible` is False where the objective has a constraint that does not hold."""

    step: int
    loss: float
    penalty: float | None = None
    feasible: bool = True

    def document(self) -> dict[str, Any]:
        return asdict(self)


class Objective(Protocol):
    """`total` is linear in the loss and the penalty of a micro-batch, so that parts of a step can be added up.
    `penalty` is what a penalty is called in the progress, in per cent."""

    penalty: str

    def total(self, loss: Tensor, penalty: Tensor | None) -> Tensor:
        """The scalar whose gradient is followed."""
        ...

    def update(self, loss: float, penalty: float | None) -> None:
        """The data's loss and the penalty of a whole step, over all processes, behind its optimizer step."""
        ...

    def feasible(self, loss: float) -> bool:
        """Whether a held-out loss satisfies the constraint, where there is one."""
        ...

    def better(self, one: Evaluated, best: Evaluated) -> bool:
        """Whether `one` shall be kept instead of `best`."""
        ...

    def told(self) -> dict[str, float]:
        """Numbers for the history and the progress bar."""
        ...

    def state(self) -> dict[str, float]:
        """What changes on the way, for a checkpoint; `load` takes it back."""
        ...

    def load(self, state: dict[str, float]) -> None: ...

    def identity(self) -> dict[str, Any]:
        """What it was made with: a checkpoint of another objective is refused."""
        ...


class Recovery:
    """Minimise the loss; a penalty that the graph returns is added as it is. The lowest held-out loss is best."""

    penalty = "penalty"

    def total(self, loss: Tensor, penalty: Tensor | None) -> Tensor:
        return loss if penalty is None else loss + penalty

    def update(self, loss: float, penalty: float | None) -> None:
        """Nothing to learn from it."""

    def feasible(self, loss: float) -> bool:
        return True

    def better(self, one: Evaluated, best: Evaluated) -> bool:
        return one.loss < best.loss

    def told(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, float]:
        return {}

    def load(self, state: dict[str, float]) -> None:
        """Nothing changes on the way."""

    def identity(self) -> dict[str, Any]:
        return {"objective": "recovery"}


@dataclass(eq=False)
class Constrained:
    """Minimise the penalty subject to loss ≤ target, by GECO (Rezende & Viola, arXiv:1810.00597):

        total = (penalty + λ·loss) / (1 + λ)
        c     = .9·c + .1·(loss − target)                       the moving average of the violation
        λ     = clip(λ · exp(.02 · clip(10·c, −1, 1)), .1, 100)

    Division by 1 + λ keeps the gradient's scale bounded; a slow, clipped λ keeps the constraint from being forgotten
    and then overcorrected. With much room under the target λ falls to its bound and stays: below .1 what is minimised
    beside the loss destroys a model faster than λ can come back. The best state has the smallest held-out penalty among
    those whose held-out loss is within the target, so that a late collapse ships nothing; where none is, the lowest
    loss.
    """

    target: float
    multiplier: float = 1.0
    violation: float = 0.0

    penalty = "edges"
    MEMORY = 0.9
    RATE = 0.02
    GAIN = 10.0
    LEAST, MOST = 1e-1, 1e2

    def total(self, loss: Tensor, penalty: Tensor | None) -> Tensor:
        if penalty is None:
            raise ValueError("a constrained objective needs a graph that returns a penalty")
        return (penalty + self.multiplier * loss) / (1 + self.multiplier)

    def update(self, loss: float, penalty: float | None) -> None:
        self.violation = self.MEMORY * self.violation + (1 - self.MEMORY) * (loss - self.target)
        push = min(1.0, max(-1.0, self.GAIN * self.violation))
        self.multiplier = min(self.MOST, max(self.LEAST, self.multiplier * math.exp(self.RATE * push)))

    def feasible(self, loss: float) -> bool:
        return loss <= self.target

    def better(self, one: Evaluated, best: Evaluated) -> bool:
        if one.feasible != best.feasible:
            return one.feasible
        return one.penalty < best.penalty if one.feasible else one.loss < best.loss

    def told(self) -> dict[str, float]:
        return {"multiplier": self.multiplier, "violation": self.violation}

    def state(self) -> dict[str, float]:
        return {"multiplier": self.multiplier, "violation": self.violation}

    def load(self, state: dict[str, float]) -> None:
        self.multiplier, self.violation = state["multiplier"], state["violation"]

    def identity(self) -> dict[str, Any]:
        return {"objective": "constrained", "target": self.target}
