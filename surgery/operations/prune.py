"""`prune tail 66% of class embeddings`: remove part of a dimension."""

from collections.abc import Iterable
from typing import Any

from surgery.diagnostics import Diagnostic
from surgery.language import Selector
from surgery.operations.base import Phase, operation
from surgery.operations.fields import after, setting, share, word
from surgery.operations.kinds import Share, forms, whole


@operation
class Prune:
    """Remove the least-used part of a dimension.

    before   table [V, D], time branch [D, H], modulation [M, D]; or a layer of C channels, an attention of H heads;
             L layers; a vocabulary of V tokens
    after    table [V, D'], time branch [D', H], modulation [M, D'] with weights that make up for what is gone; C', H';
             L' layers, the stream running past the others; table [V', D], head [V', D], ids and tokenizer in step
    refuses  a dimension that is not the class's own, heads and channels that something else reads, a layer that others
             look into or skip from, a vocabulary that something else reads, a share that leaves nothing
    """

    phase = Phase.SHRINK
    side: str = word(
        "tail",
        "head",
        "random",
        default="tail",
        doc="which end of the ranking goes: the least used, the most used (a control), or any (a control)",
    )
    share: Share = share(doc="how much goes: `66%`; a count: `2 layers`; `auto`, as much as the requirements let; all of what is numbered: `layers [3, 5]`")
    target: Selector = after(
        "of", doc="what is pruned: `class embeddings`, `mlp channels`, `attention heads in layers 2..5`, `layers except layer 0`, "
        "`token embeddings`"
    )
    by: str = after(
        "by",
        "auto",
        "greedy",
        "effect",
        "activation",
        "magnitude",
        "taylor",
        "similarity",
        "angular",
        "frequency",
        "random",
        default="auto",
        doc="the ranking: magnitude |c| (the paper's), activation |SiLU c|, effect (times the norm of the reading "
        "columns), greedy (what the kept ones explain least); of heads and channels also taylor (the loss's slope), and "
        "all but magnitude on calibration data; auto takes the one with the least error on this model; of layers, "
        "similarity of input and output or angular (of the best run of layers); of token embeddings, frequency",
    )
    scope: str = setting(
        "shared",
        "per-vector",
        default="shared",
        doc="one support for all classes and timesteps, so that layers shrink; or each vector its own, masked (the paper's)",
    )
    when: str = after(
        "when",
        forms("every", "first N steps", "last N steps"),
        default="every",
        doc="in which sampling steps; anything but every is a mask and shrinks nothing",
    )
    compensate: str = setting(
        "auto",
        "none",
        "least-squares",
        "refit",
        "match",
        default="auto",
        doc="fold what goes into what stays: in closed form over the timestep × class grid or calibration data, or by "
        "refitting c itself, or by matching the network's outputs after that; auto refits where that takes seconds, else "
        "folds; heads and channels are folded where there is calibration data",
    )
    budget: str = setting(
        "site",
        "global",
        default="site",
        doc="the share is of each layer; or of all of them together, and one ranking says how much each loses "
        "(heads and channels)",
    )
    multiple: int = setting(whole(at_least=1), default=1, doc="what is kept is rounded up to a multiple of this")
    ids: str = setting(
        "new",
        "old",
        default="new",
        doc="of token embeddings: what the model is fed, the ids of the tokenizer that is cut with it, or the original's",
    )
    seed: int = setting(whole(at_least=0), default=0, doc="of `random`")

    def conflicts(self) -> Iterable[Diagnostic]:
        masked = self.scope == "per-vector" or self.when != "every"
        if masked and self.compensate in ("least-squares", "refit", "match"):
            why = "scope=per-vector" if self.scope == "per-vector" else f"`when {self.when}`"
            yield self._fault(
                f"{why} masks c and changes no weight: nothing to compensate with",
                "leave out compensate, or use scope=shared",
            )
        if self.scope == "per-vector" and self.by in ("greedy", "effect"):
            yield self._fault(
                f"`by {self.by}` ranks coordinates for all vectors at once", "use `by magnitude` or `by activation`"
            )
        if self.side == "random" and self.scope == "per-vector":
            yield self._fault("a random support is one for all vectors", "leave out scope=per-vector")
        if self.side == "random" and self.by != "auto":
            yield self._fault(f"`prune random` ranks nothing, and `by {self.by}` does", "leave out one of the two")

    def plan(self, anatomy: Any, sites: tuple) -> list[Any]:
        """The cuts this clause makes, from shapes alone. Raises RefusalError where a site cannot be cut."""
        kinds = {site.kind for site in sites}
        if kinds == {"conditioning"}:
            from surgery.targets.class_embeddings import plan_class_embeddings

            return plan_class_embeddings(self, anatomy, sites)
        if kinds in ({"mlp"}, {"attention"}):
            from surgery.targets.unit_plan import plan_units

            return plan_units(self, anatomy, sites)
        if kinds == {"embedding"} and {site.role for site in sites} == {"token"}:
            from surgery.targets.vocabulary import plan_vocabulary

            return plan_vocabulary(self, anatomy, sites)
        if kinds == {"block"}:
            from surgery.targets.layers import plan_layers

            return plan_layers(self, anatomy, sites)
        from surgery.diagnostics import RefusalError

        raise RefusalError(
            f"prune cannot cut `{self.target.text or self.target}` yet",
            code="S314",
            span=self.clause.span if self.clause else None,
            notes=[f"`{site.name}` is a mixture of {site.experts} experts" for site in sites if site.kind == "moe"][:3],
            help="prune `class embeddings`, `token embeddings`, `mlp channels`, `attention heads` or `layers`",
        )

    def _fault(self, message: str, help: str) -> Diagnostic:
        return Diagnostic("S122", message, self.clause.span if self.clause else None, help=help)
