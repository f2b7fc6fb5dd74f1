"""`sparsify attention 90% via blocks`: whole blocks per head, chosen on data, the same for every input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch.fx import GraphModule

from surgery.anatomy.attention_form import AttentionForm
from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError
from surgery.passes.keep_edges import DENSE
from surgery.passes.runner import run_passes
from surgery.targets.attention_mass import Mass, measure
from surgery.targets.clause import refuse_options
from surgery.targets.context import Context
from surgery.targets.edge_finding import finding, site_row
from surgery.targets.edge_quality import Quality
from surgery.targets.edge_work import (
    Laid,
    Patterned,
    PatternWork,
    forms_in,
    length_of,
    lower,
    planned,
    refuse_auto,
    steps_of,
)
from surgery.targets.pattern_budget import BLOCKS, SINK, WINDOW, Head, at_random, rules_of, spend

WORTH = 1.001
"""Single blocks end at the length they were chosen at: they are taken where the loss is higher without them by this."""
Heads = dict[str, list[Head]]


def plan(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[PatternWork]:
    """One work for all sites: they share a budget. Raises RefusalError: S318, S331."""
    refuse_auto(operation)
    wrong = {"by": operation.by == "magnitude"}
    refuse_options(operation, wrong, "`via blocks`", "blocks are ranked by attention mass; `by random` is the control")
    return planned(BlockPattern(operation, sites), anatomy)


@dataclass(frozen=True, eq=False)
class BlockPattern(PatternWork):
    """before  every query sees every key it may     after  per head, the blocks that hold most attention on the data

    refuses  a share that leaves a query without its own block; forms that need data where there is none (S323)
    """

    def choose(self, anatomy: Anatomy, context: Context) -> Patterned:
        graph_module = context.rewritten()
        found = forms_in(graph_module, self.sites, self.options)
        masses = self._masses(graph_module, found, context)
        laid, tried = self._best(graph_module, found, masses, context)
        self._refuse_shown(laid, found)
        rows = []
        for place, each in enumerate(laid):
            form, why = lower(self, each, found[each.call][1], context)
            laid[place] = replace(each, form=form)
            rows.append(site_row(each, masses[each.call] if context.calibration else None, why))
        length = max((each.length for each in laid), default=0)
        data_rows = context.calibration.rows if context.calibration else 0
        one = finding(self, rows, length=length, data_rows=data_rows, requested=float(self.options.share.fraction))
        told = {"candidates": tried, "achieved": one["achieved"]}
        return Patterned(told=told, findings=(one,), notes=tuple(self._told(laid, one)), laid=tuple(laid))

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.options.by != "random":
            yield "random blocks, as many", {"by": "random"}

    def _masses(
        self, graph_module: GraphModule, found: Mapping[str, tuple[Site, AttentionForm]], context: Context
    ) -> dict[str, Mass]:
        block = self.options.block
        if context.calibration is not None:
            forms = {name: (form, site.causal) for name, (site, form) in found.items()}
            return measure(graph_module, forms, context.calibration, block, context.progress)
        forms = set(self.options.keep) - {SINK, WINDOW}
        if forms and self.options.by != "random":
            raise RefusalError(
                f"{' and '.join(sorted(forms))} are chosen on data, and there is none to calibrate on",
                code="S323",
                span=self.options.clause.span if self.options.clause else None,
                help="name data, as in `data text:\"corpus.txt\" length=512`, or write `keep=[sink, window]`, which need none",
            )
        return {name: _guessed(form, site.causal, block) for name, (site, form) in found.items()}

    def _best(
        self,
        graph_module: GraphModule,
        found: Mapping[str, tuple[Site, AttentionForm]],
        masses: Mapping[str, Mass],
        context: Context,
    ) -> tuple[list[Laid], list[dict[str, Any]]]:
        """The patterns with the lowest loss on the data of all ways to spend the budget, and what each way gave."""
        if self.options.by == "random" or context.calibration is None:
            return self._laid(found, self._spent(masses, self.options.keep, together=False), masses), []
        quality = Quality(graph_module, context.calibration)
        ways = [(forms, together) for forms in self._forms() for together in (True, False)]
        tried: list[tuple[float, list[Laid], dict[str, Any]]] = []
        for index, (forms, together) in enumerate(ways):
            context.progress("comparing patterns", index, len(ways))
            laid = self._laid(found, self._spent(masses, forms, together=together), masses)
            value = quality.of(self._run(graph_module, laid, found))
            row = {"budget": "in common" if together else "per head", "forms": list(forms), quality.name: value}
            tried.append((value, laid, row))
        ahead = min(tried, key=lambda each: each[0] * (WORTH if BLOCKS in each[2]["forms"] else 1.0))
        return ahead[1], [row | {"chosen": row is ahead[2]} for _, _, row in tried]

    def _forms(self) -> list[tuple[str, ...]]:
        """With and without single blocks, where there is a choice."""
        keep = tuple(self.options.keep)
        rest = tuple(form for form in keep if form != BLOCKS)
        return [keep] if rest == keep or not rest else [rest, keep]

    def _spent(self, masses: Mapping[str, Mass], forms: tuple[str, ...], *, together: bool) -> Heads:
        heads = {name: [Head(table.numpy(), mass.causal) for table in mass.share] for name, mass in masses.items()}
        self._refuse_small(heads)
        every = [head for each in heads.values() for head in each]
        for pool in [every] if together else [[head] for head in every]:
            budget = int(self.kept * sum(head.possible for head in pool))
            if self.options.by == "random":
                at_random(pool, budget, self.options.seed + len(pool) * every.index(pool[0]))
            else:
                spend(pool, budget, forms)
        return heads

    def _refuse_small(self, heads: Heads) -> None:
        """A head keeps the blocks on its diagonal at least."""
        for name, each in heads.items():
            least = Fraction(len(each[0].kept), each[0].possible)
            if self.kept < least:
                raise RefusalError(
                    f"`{self.options.share}` cannot go of `{name}`: blocks of {self.options.block} at "
                    f"{len(each[0].kept) * self.options.block} keys leave {float(1 - least):.0%} to go at most",
                    code="S332",
                    span=self.options.clause.span if self.options.clause else None,
                    notes=["every query keeps its own block"],
                    help="take smaller blocks, as in `block=16`, longer data, or a smaller share",
                )

    def _refuse_shown(self, laid: list[Laid], found: Mapping[str, tuple[Site, AttentionForm]]) -> None:
        """The proof runs the example inputs."""
        for each in laid:
            shown = length_of(found[each.call][1])
            if each.rules.length and shown > each.rules.length:
                raise RefusalError(
                    f"single blocks were chosen for {each.rules.length} keys, and the example inputs have {shown}",
                    code="S332",
                    span=self.options.clause.span if self.options.clause else None,
                    help="give longer data, as in `length=512`, or leave `blocks` out of `keep`",
                )

    def _laid(
        self, found: Mapping[str, tuple[Site, AttentionForm]], heads: Heads, masses: Mapping[str, Mass]
    ) -> list[Laid]:
        return [
            Laid(site, name, rules_of(heads[name], self.options.block), masses[name].length)
            for name, (site, _) in found.items()
        ]

    def _run(
        self, graph_module: GraphModule, laid: list[Laid], found: Mapping[str, tuple[Site, AttentionForm]]
    ) -> GraphModule:
        """The graph under patterns, by kernels where it can be: the numbers are the same."""
        fast = "block" if self.normalize == "kept" else "edge"
        quick = [replace(each, form=fast if found[each.call][1].fused else DENSE) for each in laid]
        return run_passes(graph_module, steps_of(self, quick, found))

    def _told(self, laid: list[Laid], one: Mapping[str, Any]) -> Iterator[str]:
        lengths = {each.rules.length for each in laid if each.rules.length}
        if lengths:
            yield f"single blocks are kept: input of more than {min(lengths)} tokens is refused"
        dense = sum(row["lowered"].startswith(DENSE) for row in one["sites"])
        if dense:
            yield f"{dense} of {len(laid)} attentions run dense, under a mask: nothing sparse measured faster"


def _guessed(form: AttentionForm, causal: bool, block: int) -> Mass:
    """Without data: a sink at the first keys and a window that fades, at the length of the example inputs."""
    length = length_of(form)
    rows = -(-length // block)
    apart = torch.arange(rows)[:, None] - torch.arange(rows)
    table = torch.exp2(-apart.abs().double())
    table[:, 0] += 1.0
    table = table.tril() if causal else table
    mass = Mass(block, causal)
    mass.add(table.expand(form.count, -1, -1).clone(), length)
    return mass
