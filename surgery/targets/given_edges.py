"""`sparsify attention to edges "edges.safetensors"`: a pattern that was found elsewhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.attention_form import AttentionForm
from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError, SurgeryError
from surgery.kernels.layouts.rules import Rules
from surgery.targets.attention_mass import Mass, Watch, batches, blocked
from surgery.targets.calibration import MASKS
from surgery.targets.clause import refuse_options
from surgery.targets.context import Context
from surgery.targets.edge_finding import LARGEST, finding, site_row
from surgery.targets.edge_work import Laid, Patterned, PatternWork, forms_in, length_of, lower, planned
from surgery.targets.edges_file import EdgesFile, check_edges, read_edges, refuse_other


def plan(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[PatternWork]:
    """One work for all sites, its file read and found fit. Raises RefusalError: S201, S318, S331, S333."""
    wrong = {"by": operation.by in ("magnitude", "mass")}
    refuse_options(operation, wrong, "a given pattern", "nothing is ranked; `by random` is the control")
    try:
        file = read_edges(path_of(operation))
        refuse_other(file, anatomy, tuple(site.name for site in sites))
        for site in sites:
            check_edges(file, site.name, file.edges[site.name], causal=site.causal)
    except SurgeryError as error:
        span = operation.clause.span if operation.clause else None
        raise RefusalError(diagnostics=[replace(one, span=span) for one in error.diagnostics]) from error
    return planned(GivenEdges(operation, sites, via="edges", file=file), anatomy)


def path_of(operation: Any) -> Path:
    """Where the file is: beside the spec, where that is a file, or else where we are."""
    path = Path(operation.to).expanduser()
    span = operation.clause.span if operation.clause else None
    beside = Path(span.source.name).parent / path if span is not None and Path(span.source.name).is_file() else path
    return beside if beside.is_file() else path


@dataclass(frozen=True, eq=False)
class GivenEdges(PatternWork):
    """before  every query sees every key it may     after  per head, the listed edges alone

    refuses  a file of another model, an edge ahead of its query on a causal site, a query without an edge (S333); at run
             time input that is longer than what the pattern is for
    """

    file: EdgesFile | None = field(default=None, repr=False)

    def choose(self, anatomy: Anatomy, context: Context) -> Patterned:
        graph_module = context.rewritten()
        found = forms_in(graph_module, self.sites, self.options)
        self._refuse_others(found, context)
        laid = [self._laid(site, name, place) for place, (name, (site, _)) in enumerate(found.items())]
        held = self._held(graph_module, found, laid, context)
        rows = []
        for place, each in enumerate(laid):
            form, why = lower(self, each, found[each.call][1], context)
            laid[place] = replace(each, form=form)
            row = site_row(each, held[each.call].mass if each.call in held else None, why)
            rows.append(row | ({"mass": held[each.call].share} if each.call in held else {}))
        data_rows = context.calibration.rows if context.calibration else 0
        one = finding(self, rows, length=self.file.length, data_rows=data_rows, requested=None)
        note = f"input of more than {self.file.length} tokens is refused: the edges were given for so many"
        return Patterned(told={"achieved": one["achieved"]}, findings=(one,), notes=(note,), laid=tuple(laid))

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.options.by != "random":
            yield "random edges, as many", {"by": "random"}

    def _laid(self, site: Site, name: str, place: int) -> Laid:
        edges = self.file.edges[site.name]
        if self.options.by == "random":
            edges = at_random(edges, site, self.file.length, self.options.seed + place)
        rules = Rules.of(site.heads, 1, entries=edges, length=self.file.length)
        return Laid(site, name, rules, self.file.length)

    def _refuse_others(self, found: Mapping[str, tuple[Site, AttentionForm]], context: Context) -> None:
        lengths = [length_of(form) for _, form in found.values()]
        if context.calibration is not None:
            lengths += [value.shape[1] for name, value in context.calibration.inputs.items() if name == "input_ids"]
        cut = next((site.name for site, form in found.values() if form.count != site.heads), None)
        if cut is not None:
            raise RefusalError(
                f"heads of `{cut}` are pruned, and `{self.file.path}` numbers them as they were",
                code="S333",
                span=self.options.clause.span if self.options.clause else None,
                help="prune first, save the bundle, and find the edges on what is left",
            )
        longest = max(lengths, default=0)
        if longest > self.file.length:
            raise RefusalError(
                f"`{self.file.path}` holds edges for {self.file.length} positions, and the inputs have {longest}",
                code="S333",
                span=self.options.clause.span if self.options.clause else None,
                help=f"write `length={self.file.length}` into the `data` clause, and give shorter example inputs",
            )

    def _held(
        self,
        graph_module: GraphModule,
        found: Mapping[str, tuple[Site, AttentionForm]],
        laid: list[Laid],
        context: Context,
    ) -> dict[str, "Held"]:
        if context.calibration is None:
            return {}
        held = {each.call: Held.of(each) for each in laid}
        forms = {name: (form, site.causal) for name, (site, form) in found.items()}
        for inputs, _ in batches(context.calibration):
            real = next((inputs[name] for name in MASKS if isinstance(inputs.get(name), Tensor)), None)
            _Hold(graph_module, forms, held, real).values(context.calibration, inputs)
        return held


def at_random(edges: Tensor, site: Site, length: int, seed: int) -> Tensor:
    """The control: per head as many edges, each query's own among them, the others drawn alike."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.arange(length)
    open_ = torch.ones(length, length).tril(-1) if site.causal else 1 - torch.eye(length)
    places, made = open_.nonzero(), []
    for head in range(site.heads):
        more = max(int((edges[:, 0] == head).sum()) - length, 0)
        chosen = places[torch.randperm(len(places), generator=draw)[:more]]
        pairs = torch.cat((torch.stack((own, own), 1), chosen))
        made.append(torch.cat((torch.full((len(pairs), 1), head), pairs), 1))
    return torch.cat(made).to(torch.int32)


@dataclass(eq=False)
class Held:
    """Of one call: attention by blocks, and per head what passes through the edges, of the whole."""

    mask: Tensor
    mass: Mass
    inside: Any = 0.0
    whole: Any = 0.0

    @classmethod
    def of(cls, laid: Laid) -> "Held":
        mask = laid.rules.mask(laid.length, laid.length, laid.site.causal)
        return cls(mask, Mass(max(1, -(-laid.length // LARGEST)), laid.site.causal))

    @property
    def share(self) -> list[float]:
        return (self.inside / self.whole).tolist()


class _Hold(Watch):
    def __init__(self, graph_module: GraphModule, forms: Any, held: dict[str, Held], real: Tensor | None) -> None:
        super().__init__(graph_module, forms, real)
        self.held = held

    def weights(self, name: str, weights: Tensor, start: int, keys: int) -> None:
        held = self.held[name]
        kept = held.mask[:, start : start + weights.shape[2], :keys].to(weights.device)
        held.inside = held.inside + (weights * kept).double().sum((0, 2, 3))
        held.whole = held.whole + weights.double().sum((0, 2, 3))
        held.mass.add(blocked(weights.double().sum(0), held.mass.block, start), keys)
