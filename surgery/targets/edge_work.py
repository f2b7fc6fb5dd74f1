"""What the training-free ways of `sparsify` share: patterns per site, the passes that lay them, and what they run as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch.fx import GraphModule

from surgery.anatomy.attention_form import AttentionForm, Obstacle, forms_of
from surgery.anatomy.flops import example
from surgery.anatomy.graphs import shape, value
from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError
from surgery.kernels.layouts.rules import Rules
from surgery.lowering.gate import Decision
from surgery.lowering.patterns import choose_pattern
from surgery.passes.keep_edges import DENSE, KeepEdges, MaskEdges, node_of, unfit
from surgery.passes.write_out_attention import WriteOutAttention
from surgery.plan.action import Action
from surgery.targets.clause import OfClause
from surgery.targets.learned import Learned


@dataclass(frozen=True, eq=False)
class Laid:
    """A pattern over one call of a site, and as what it runs: `block`, `edge` or `dense`. It was made at `length` keys."""

    site: Site
    call: str
    rules: Rules
    length: int
    form: str = DENSE


@dataclass(frozen=True, eq=False)
class Patterned(Learned):
    """Learned, and the patterns that were chosen."""

    laid: tuple[Laid, ...] = ()


@dataclass(frozen=True, eq=False)
class PatternWork(OfClause):
    """Attention of some sites under fixed patterns."""

    options: Any
    sites: tuple[Site, ...] = field(repr=False)
    via: str = "blocks"

    @property
    def normalize(self) -> str:
        return "kept" if self.options.normalize == "auto" else self.options.normalize

    @property
    def told_length(self) -> tuple[str, ...]:
        """Notes of the plan."""
        return ()

    @property
    def kept(self) -> Fraction | None:
        """The share of edges that is to stay, where the clause says it."""
        return None if self.options.share is None else 1 - self.options.share.fraction

    def action(self, graph_module: GraphModule) -> Action:
        return Action(
            clause=self.clause,
            place=self.place,
            operation="sparsify",
            kind="attention",
            sites=tuple(site.name for site in self.sites),
            before={"edges": "100%"},
            after={"edges": "those given" if self.kept is None else f"{float(100 * self.kept):.4g}%"},
            notes=self.told_length,
            settings={"via": self.via, "normalize": self.normalize},
        )

    def passes(self, graph_module: GraphModule, choice: Patterned, context: Any) -> list[Any]:
        return steps_of(self, choice.laid, forms_in(graph_module, self.sites, self.options))

    def written_out(self, found: Mapping[str, tuple[Site, AttentionForm]]) -> WriteOutAttention:
        """Every call in plain operators."""
        calls = tuple(sorted(name for name, (_, form) in found.items() if form.fused))
        return WriteOutAttention(self.clause, self.place, calls)

    def reference(self, graph_module: GraphModule, choice: Patterned, context: Any) -> list[Any]:
        found = forms_in(graph_module, self.sites, self.options)
        steps: list[Any] = [self.written_out(found)]
        for laid in choice.laid:
            most = max(laid.length, length_of(found[laid.call][1]))
            mask = laid.rules.mask(most, most, False)
            steps.append(MaskEdges(self.clause, self.place, laid.site, laid.call, mask, self.normalize))
        return steps


def steps_of(
    work: PatternWork, patterns: Sequence[Laid], found: Mapping[str, tuple[Site, AttentionForm]]
) -> list[Any]:
    """The passes that lay patterns over a graph."""
    fused = {laid.call for laid in patterns if found[laid.call][1].fused}
    plain = {laid.call for laid in patterns if laid.form == DENSE} & fused if work.normalize == "all" else set()
    first = [WriteOutAttention(work.clause, work.place, tuple(sorted(plain)))] if plain else []
    return first + [
        KeepEdges(work.clause, work.place, laid.site, laid.call, laid.rules, work.normalize, laid.form)
        for laid in patterns
    ]


def forms_in(
    graph_module: GraphModule, sites: tuple[Site, ...], operation: Any
) -> dict[str, tuple[Site, AttentionForm]]:
    """Each call of the sites that is still in the graph, by the name of its node. Raises RefusalError (S331) for one that
    no pattern can be laid over."""
    found: dict[str, tuple[Site, AttentionForm]] = {}
    for site in sites:
        for form in forms_of(graph_module, site):
            reason = unfit(form)
            if reason is not None or isinstance(form, Obstacle):
                raise RefusalError(
                    f"the attention of `{site.name}` cannot lose edges: {reason}",
                    code="S331",
                    span=operation.clause.span if operation.clause else None,
                    notes=[f"at node `{node_of(form).name}`"],
                    help=f"leave it out: `{site.left_out}`",
                )
            found[node_of(form).name] = site, form
    return found


def lower(work: PatternWork, laid: Laid, form: AttentionForm, context: Any) -> tuple[str, str]:
    """As what a site runs, and the sentence that says why."""
    if not form.fused:
        return DENSE, f"{DENSE}: its softmax is written out in the model, and no kernel stands in for it"
    if work.options.by == "random":
        return DENSE if work.normalize == "all" else "block", "a control: not measured"
    context.progress(f"measuring {laid.site.name}", 0, 0)
    decision = decide(laid, form, work.normalize)
    times = ", ".join(f"{name} {taken:.3g} ms" for name, taken in decision.milliseconds.items())
    others = "" if decision.sparse else "; ".join(f"{name} {why}" for name, why in decision.rejected.items())
    sizes = f"at {laid.length} keys, {str(value(form.query).dtype).removeprefix('torch.')}"
    why = " ".join(filter(None, (decision.reason, others, sizes)))
    return decision.chosen, f"{decision.chosen}: {why}" + (f" ({times})" if times else "")


def decide(laid: Laid, form: AttentionForm, normalize: str) -> Decision:
    """The gate's, for one row of the length that the pattern was made at, and a mask where the site has one."""
    draw, like, causal = torch.Generator().manual_seed(0), value(form.query), laid.site.causal
    heads, kv_heads, width = form.count, shape(form.key)[-3], shape(form.query)[-1]
    kv_heads = heads if len(form.heads) != 1 else int(kv_heads)
    q, k, v = (
        torch.randn(1, count, laid.length, width, generator=draw).to(like.device, like.dtype)
        for count in (heads, kv_heads, kv_heads)
    )
    mask = None
    if form.mask is not None:
        mask = torch.ones(1, 1, laid.length, laid.length, dtype=torch.bool, device=like.device)
        mask = mask.tril() if causal else mask
    return choose_pattern(q, k, v, laid.rules, causal=causal, normalize=normalize, mask=mask)


def length_of(form: AttentionForm) -> int:
    """Keys that the example inputs have."""
    return example(shape(form.query)[-2] if form.fused else shape(form.logits)[-2])



def refuse_auto(operation: Any) -> None:
    """Raise RefusalError (S318) for a share that is to be searched for."""
    if operation.share is not None and operation.share.auto:
        raise RefusalError(
            f"`auto` is no share for `via {operation.via}`",
            code="S318",
            span=operation.clause.span if operation.clause else None,
            help="write a percentage, as in `sparsify attention 90% via blocks`",
        )


def planned(work: PatternWork, anatomy: Anatomy) -> list[PatternWork]:
    """The work, once what it is about was seen to be fit."""
    forms_in(anatomy.graph_module, work.sites, work.options)
    return [work]
