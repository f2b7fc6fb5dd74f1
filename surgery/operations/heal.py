"""`heal steps=500 lr=1e-4`: train what is left for a while, so that it makes up for what is gone."""

from collections.abc import Iterable
from typing import Any

from surgery.diagnostics import Diagnostic
from surgery.operations.base import Phase, operation
from surgery.operations.fields import after, setting
from surgery.operations.kinds import number, whole
from surgery.operations.trains import untrainable


@operation
class Heal:
    """Train what is left for a while, so that it makes up for what is gone.

    before   weights W of the model as cut so far     after  weights W' of the same shapes; buffers, ties and dtypes as
             they were, the state with the lowest loss on calibration rows that were not trained on
    refuses  a model without calibration data; `by data` where the data has no loss of its own; a teacher whose outputs
             have other shapes
    """

    phase = Phase.HEAL
    by: str = after(
        "by",
        "auto",
        "data",
        "distillation",
        "both",
        default="auto",
        doc="what is learned from: data (the loss of the data: next tokens, masked tokens, labels), distillation (the "
        "original's outputs: KL of logits, else squared error), both (their sum); auto is data where it has a loss",
    )
    steps: int = setting(whole(at_least=1), default=500, doc="optimizer steps")
    lr: float = setting(
        number(at_least=0.0), default=1e-4, doc="the learning rate behind the warm-up, which is 5 % of the steps"
    )
    batch: int = setting(whole(at_least=1), default=16, doc="rows in an optimizer step, of all processes together")
    accumulate: int = setting(
        whole(at_least=1), default=1, doc="passes that such a batch is computed in, to save memory"
    )
    precision: str = setting(
        "float32", "bfloat16", default="float32", doc="what a float32 model is computed in; its weights stay float32"
    )
    decay: str = setting("cosine", "linear", "none", default="cosine", doc="how the rate falls behind the warm-up")
    lora: int = setting(
        whole(at_least=0), default=0, doc="train adapters of this rank, merged at the end; 0: all weights"
    )
    shard: str = setting(
        "none",
        "fsdp",
        default="none",
        doc="under torchrun: a copy in each process (DDP), or the model shared out (FSDP2)",
    )
    seed: int = setting(whole(at_least=0), default=0, doc="of the order of rows and of adapters")

    def conflicts(self) -> Iterable[Diagnostic]:
        return (self._fault(message, help) for message, help in untrainable(self))

    def plan(self, anatomy: Any, sites: tuple) -> list[Any]:
        """One work, on whatever the works before it leave."""
        from surgery.targets.recovery import Recovering

        return [Recovering(self)]

    def _fault(self, message: str, help: str) -> Diagnostic:
        return Diagnostic("S122", message, self.clause.span if self.clause else None, help=help)
