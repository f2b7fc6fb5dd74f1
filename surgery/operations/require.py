"""`require loss <= 1.02x`: what must hold, or nothing is written."""

from collections.abc import Iterable

from surgery.diagnostics import Diagnostic, did_you_mean
from surgery.language import Comparison, Quantity
from surgery.operations.base import Phase, operation
from surgery.operations.fields import comparison, subject

METRICS = (
    "loss",
    "denoising loss",
    "accuracy",
    "frechet",
    "perplexity",
    "logit kl",
    "agreement",
    "embedding cosine",
    "paired error",
    "output error",
    "output cosine",
    "parameters",
    "size",
    "flops",
    "latency",
    "memory",
    "edges",
)
UNCHANGING = ("parameters", "size", "flops", "latency", "memory", "edges")
"""Metrics that a larger cut only makes better: they set no limit to it."""
COMPARE = {
    "<=": float.__le__,
    ">=": float.__ge__,
    "<": float.__lt__,
    ">": float.__gt__,
    "==": float.__eq__,
}


@operation
class Require:
    """Demand a measured result; where it does not hold, the run fails and writes no model.

    before   a metric measured before and after     after   the same, held to the limit
    refuses  a metric that is not measured
    """

    phase = Phase.VERIFY
    metric: str = subject(
        str,
        doc=", ".join(METRICS) + "; `loss` is the first there is of a language model's, the denoising loss and the output "
        "error, `latency` is one eager forward pass at batch 1, and `edges` are those of attention that are kept, of those "
        "that can exist",
    )
    bound: Comparison = comparison(doc="`1.02x` is relative to the original model; `95%`, `20ms`, `2GB` are absolute")

    @property
    def comparison(self) -> str:
        """`<=`, `>=`, `<`, `>` or `==`."""
        return self.bound.operator

    @property
    def limit(self) -> Quantity:
        """The limit as written."""
        return self.bound.value

    @property
    def limits(self) -> bool:
        """Whether a larger cut can break it: a demand on quality."""
        return self.metric not in UNCHANGING

    @property
    def relative(self) -> bool:
        """Whether the limit is a multiple of the original model's value."""
        return self.limit.unit == "x"

    @property
    def text(self) -> str:
        """The requirement as a sentence."""
        return f"require {self.metric} {self.bound}"

    def threshold(self, before: float | None = None) -> float:
        """The limit in the metric's own unit (a fraction, seconds, bytes); a relative one needs the value before."""
        if not self.relative:
            return float(self.limit.value)
        if before is None:
            raise ValueError(f"`{self.text}` is relative: the original model's {self.metric} is needed")
        return float(self.limit.value) * before

    def holds(self, measured: float, before: float | None = None) -> bool:
        """Whether a measured value meets the requirement; NaN never does."""
        return COMPARE[self.comparison](float(measured), self.threshold(before))

    def conflicts(self) -> Iterable[Diagnostic]:
        span = self.clause.pieces[0].span if self.clause and self.clause.pieces else None
        if self.metric not in METRICS:
            help = did_you_mean(self.metric, METRICS)
            yield Diagnostic("S118", f"unknown metric `{self.metric}`", span, help=help)
        if not isinstance(self.limit, Quantity):
            help = "write a quantity: `<= 1.02x`, `>= 95%`, `<= 20ms`"
            yield Diagnostic("S107", f"`{self.limit}` is not a limit", self.limit.span, help=help)
