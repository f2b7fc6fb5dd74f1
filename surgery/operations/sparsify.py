"""`sparsify attention 99.6% via gates`: switch off the edges of attention that do not matter."""

from collections.abc import Iterable
from typing import Any

from surgery.diagnostics import Diagnostic
from surgery.language import Quantity, Selector
from surgery.operations.base import Phase, operation
from surgery.operations.fields import after, setting, share, subject
from surgery.operations.kinds import Share, file_of, number, whole, words
from surgery.operations.trains import untrainable


@operation
class Sparsify:
    """Switch off the edges of attention (a query, a key, a head) that do not matter.

    before   A = softmax(s) [B, H, Sq, Sk], out = A V     after  out = (A · g) V with g in {0, 1} (normalize=all), or the
             softmax over kept keys alone (normalize=kept)
    refuses  a pattern that leaves a query no edge, that looks ahead where attention is causal, or that was made for
             another model; gates without data to train on
    """

    phase = Phase.SPARSIFY
    target: Selector = subject(Selector, doc="what is sparsified: `attention`, `attention in layers 4..11 except layer 7`")
    share: Share | None = share(
        default=None, doc="how many of the edges that attention can have go: `99.6%`; with gates, the aim under the tolerance"
    )
    via: str = after(
        "via",
        "auto",
        "gates",
        "blocks",
        "topk",
        default="auto",
        doc="how edges are chosen: gates learns them by post-training (the paper's), blocks keeps whole blocks per head, "
        "the same for every input and therefore fast, topk the highest scores of each query; auto is gates",
    )
    to: str | None = after("to", file_of("edges"), default=None, doc='a given pattern: `to edges "edges.safetensors"`')
    by: str = after(
        "by",
        "auto",
        "mass",
        "magnitude",
        "random",
        default="auto",
        doc="what edges are ranked by: auto is what `via` says (learned gates; attention mass); magnitude, without "
        "training, is one threshold on the attention weights of all heads, and beside trained gates a control with as many "
        "edges per head; random is the other",
    )
    normalize: str = setting(
        "auto",
        "all",
        "kept",
        default="auto",
        doc="what attention is a softmax over: all keys, and edges that go take their weight with them, or the kept keys "
        "alone; auto is all for gates (the paper's), kept for the others",
    )
    tolerance: Quantity = setting(
        Quantity,
        default=Quantity(1, "%"),
        doc="gates: how much the loss may rise: `1%` of the dense model's, or nats: `0.01`",
    )
    follow: str = setting(
        "auto",
        "dense",
        "data",
        default="auto",
        doc="gates: what training keeps: the dense model's outputs, whose divergence has no noise of what comes next, or the "
        "loss of the data (the paper's); auto is dense, but data for a tolerance of 0, which no other model's outputs meet",
    )
    steps: int = setting(whole(at_least=1), default=2000, doc="gates: optimizer steps")
    lr: float = setting(number(at_least=0.0), default=3e-4, doc="gates: the learning rate behind the warm-up")
    batch: int | None = setting(whole(at_least=1), default=None, doc="gates: rows in an optimizer step")
    accumulate: int = setting(whole(at_least=1), default=1, doc="gates: parts that such a batch is computed in")
    precision: str = setting("float32", "bfloat16", default="float32", doc="gates: what the forward pass is computed in")
    lora: int = setting(whole(at_least=0), default=0, doc="gates: train adapters of this rank, merged at the end; 0: all weights")
    distill: float = setting(
        number(at_least=0.0), default=0.0, doc="gates: weight of KL(dense || sparse), added to the loss of the data"
    )
    bias: float | None = setting(
        number(),
        default=None,
        doc="gates: the bias that all start with, such as 3, open; without it each head starts with the one that keeps "
        "95% of its attention",
    )
    block: int = setting(whole(at_least=1), default=64, doc="blocks: queries and keys of a block")
    keep: tuple[str, ...] = setting(
        words("sink", "window", "vertical", "slash", "blocks"),
        default=("sink", "window", "vertical", "slash", "blocks"),
        doc="blocks: the forms that a head's pattern may be made of",
    )
    score: str = setting(
        "exact", "predicted", default="exact", doc="topk: rank keys by their scores, or by cheap ones of few dimensions"
    )
    dead: str = setting(
        "keep", "remove", default="keep", doc="heads that no edge is left of stay as they are, or are removed"
    )
    seed: int = setting(whole(at_least=0), default=0, doc="of noise, batches, and `by random`")

    def conflicts(self) -> Iterable[Diagnostic]:
        if self.share is None and self.to is None and self.via in ("blocks", "topk"):
            yield self._fault(f"`via {self.via}` needs to know how much goes", "write a share, as in `sparsify attention 90%`")
        if self.to is not None and (self.share is not None or self.via != "auto"):
            yield self._fault("a given pattern leaves nothing to choose", "leave out the share and `via`")
        if self.share is not None and self.share.count is not None:
            yield self._fault(f"`{self.share}` is a count, and edges grow with the length", "write a percentage")
        if self.tolerance.measure not in ("number", "share") or self.tolerance.value < 0:
            yield self._fault(f"`tolerance={self.tolerance}` is no rise of a loss", "write `1%`, or nats such as `0.01`")
        yield from (self._fault(message, help) for message, help in untrainable(self))

    def plan(self, anatomy: Any, sites: tuple) -> list[Any]:
        """A work per site, or one for all where they are learned together. Raises RefusalError."""
        from surgery.targets.edges_plan import plan_edges

        return plan_edges(self, anatomy, sites)

    def _fault(self, message: str, help: str) -> Diagnostic:
        return Diagnostic("S122", message, self.clause.span if self.clause else None, help=help)
