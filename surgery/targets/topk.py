"""`sparsify attention 95% via topk`: each query keeps its highest scores, whatever the input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.attention_form import AttentionForm
from surgery.anatomy.graphs import aten, is_op
from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError
from surgery.passes.keep_top import Cheap, KeepTop
from surgery.targets.attention_mass import Mass, Watch, batches, blocked, heads_first
from surgery.targets.calibration import MASKS
from surgery.targets.clause import refuse_options
from surgery.targets.context import Context
from surgery.targets.edge_finding import LARGEST, edge_map, finding
from surgery.targets.edge_work import PatternWork, forms_in, length_of, planned, refuse_auto
from surgery.targets.learned import Learned

DIMENSIONS = 4
"""Cheap scores have one dimension for so many of a head."""
WHY = "dense: the scores of all keys are computed to find the highest"


def plan(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[PatternWork]:
    """One work for all sites. Raises RefusalError: S318, S331."""
    refuse_auto(operation)
    wrong = {"by": operation.by == "magnitude"}
    refuse_options(operation, wrong, "`via topk`", "keys are ranked by their scores; `by random` is the control")
    return planned(TopK(operation, sites, via="topk"), anatomy)


@dataclass(frozen=True, eq=False)
class Topped(Learned):
    """Learned, and the cheap scores of each call, where they are asked for."""

    cheap: Mapping[str, Cheap] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TopK(PatternWork):
    """before  every query sees every key it may     after  it sees the ceil(share · n) of n keys that it scores highest

    refuses  predicted scores without data to fit them on (S323), or where scores are written out in the model (S331)
    """

    def choose(self, anatomy: Anatomy, context: Context) -> Topped:
        graph_module = context.rewritten()
        found = forms_in(graph_module, self.sites, self.options)
        cheap = self._cheap(graph_module, found, context)
        seen = self._seen(graph_module, found, cheap, context)
        rows = [self._row(site, name, form, seen.get(name)) for name, (site, form) in found.items()]
        length = max((length_of(form) for _, form in found.values()), default=0)
        length = max((each.mass.length for each in seen.values()), default=length)
        data_rows = context.calibration.rows if context.calibration else 0
        one = finding(self, rows, length=length, data_rows=data_rows, requested=float(self.options.share.fraction))
        told = {"score": self.options.score, "achieved": one["achieved"]}
        if self.options.score == "predicted":
            told["recall"] = {row["site"]: row.get("recall") for row in rows}
        return Topped(told=told, findings=(one,), cheap=cheap)

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.options.by != "random" and all(_is_call(site) for site in self.sites):
            yield "random keys, as many", {"by": "random"}

    def passes(self, graph_module: GraphModule, choice: Topped, context: Context) -> list[Any]:
        return self._steps(graph_module, choice, by_rank=False)

    def reference(self, graph_module: GraphModule, choice: Topped, context: Context) -> list[Any]:
        return self._steps(graph_module, choice, by_rank=True)

    def _steps(self, graph_module: GraphModule, choice: Topped, *, by_rank: bool) -> list[Any]:
        found = forms_in(graph_module, self.sites, self.options)
        common = (self.kept, self.normalize)
        steps = [
            KeepTop(self.clause, self.place, site, name, *common, choice.cheap.get(name), by_rank)
            for name, (site, _) in found.items()
        ]
        return [self.written_out(found), *steps]

    def _cheap(
        self, graph_module: GraphModule, found: Mapping[str, tuple[Site, AttentionForm]], context: Context
    ) -> dict[str, Cheap]:
        if self.options.score == "exact" and self.options.by != "random":
            return {}
        for site, form in found.values():
            if not form.fused or len(form.heads) != 1:
                what = f"the scores of `{site.name}` are written out in the model: its queries are not known"
                raise self._refusal("S331", what, "rank by `score=exact`")
        if self.options.by == "random":
            draw = torch.Generator().manual_seed(self.options.seed)
            return {name: _random(form, draw) for name, (_, form) in found.items()}
        if context.calibration is None:
            what = "`score=predicted` fits cheap scores on data, and there is none to calibrate on"
            raise self._refusal("S323", what, 'name data, as in `data text:"corpus.txt" length=512`')
        sums = {name: Sums() for name in found}
        forms = {name: (form, site.causal) for name, (site, form) in found.items()}
        for inputs, _ in batches(context.calibration):
            _Sum(graph_module, forms, sums).values(context.calibration, inputs)
        return {name: sums[name].fitted(form) for name, (_, form) in found.items()}

    def _seen(
        self,
        graph_module: GraphModule,
        found: Mapping[str, tuple[Site, AttentionForm]],
        cheap: Mapping[str, Cheap],
        context: Context,
    ) -> dict[str, "Seen"]:
        if context.calibration is None or self.options.by == "random":
            return {}
        length = max(length_of(form) for _, form in found.values())
        length = max([length, *(v.shape[1] for v in context.calibration.inputs.values() if v.dim() == 2)])
        forms = {name: (form, site.causal) for name, (site, form) in found.items()}
        seen = {name: Seen(Mass(-(-length // LARGEST), causal), self.kept) for name, (_, causal) in forms.items()}
        for inputs, _ in batches(context.calibration):
            real = next((inputs[name] for name in MASKS if isinstance(inputs.get(name), Tensor)), None)
            _Count(graph_module, forms, seen, real, cheap).values(context.calibration, inputs)
        return seen

    def _row(self, site: Site, name: str, form: AttentionForm, seen: "Seen | None") -> dict[str, Any]:
        row: dict[str, Any] = {"site": site.name, "layer": site.layer, "heads": form.count, "dead": [], "lowered": WHY}
        if seen is None:
            nothing = torch.zeros(form.count, 1, 1)
            return row | {"kept": [float(self.kept)] * form.count, "mass": None, "map": edge_map(nothing, nothing)}
        share = seen.mass.share
        edges = seen.edges[:, : share.shape[1], : share.shape[2]]
        picture = edge_map(*(each / each.amax((1, 2), keepdim=True).clamp(min=1e-300) for each in (share, edges)))
        row |= {"kept": (seen.kept / seen.possible).tolist(), "mass": (seen.held / seen.whole).tolist(), "map": picture}
        return row | ({"recall": (seen.hit / seen.kept).tolist()} if self.options.score == "predicted" else {})

    def _refusal(self, code: str, message: str, help: str) -> RefusalError:
        span = self.options.clause.span if self.options.clause else None
        return RefusalError(message, code=code, span=span, help=help)


def _is_call(site: Site) -> bool:
    return all(is_op(node, aten.scaled_dot_product_attention) for node in site.nodes)


class Sums:
    """Second moments of the queries and keys of each head, [H, D, D]."""

    def __init__(self) -> None:
        self.queries: Any = 0.0
        self.keys: Any = 0.0

    def add(self, q: Tensor, k: Tensor) -> None:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        self.queries, self.keys = (
            total + torch.einsum("bhsd,bhse->hde", each.double(), each.double())
            for total, each in ((self.queries, q), (self.keys, k))
        )

    def fitted(self, form: AttentionForm) -> Cheap:
        """The products of r dimensions that are nearest to q · k on the data, in squares, over all pairs."""
        (root, back), (root_k, back_k) = (_roots(each) for each in (self.queries, self.keys))
        left, size, right = torch.linalg.svd(root @ root_k)
        most = max(1, size.shape[-1] // DIMENSIONS)
        weight = size[:, None, :most].sqrt()
        of_queries, of_keys = back @ left[..., :most] * weight, back_k @ right.mT[..., :most] * weight
        return Cheap(form.query.name, form.key.name, of_queries, of_keys)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """C^½ and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0).sqrt()
    inverse = torch.where(values > values.amax(-1, keepdim=True) * 1e-7, 1 / values, 0.0)
    return vectors * values[:, None] @ vectors.mT, vectors * inverse[:, None] @ vectors.mT


def _random(form: AttentionForm, draw: torch.Generator) -> Cheap:
    """Scores that know nothing: products of projections that have nothing to do with each other."""
    dim = form.query.meta["val"].shape[-1]
    of_queries, of_keys = (torch.randn(form.count, dim, max(1, dim // DIMENSIONS), generator=draw) for _ in range(2))
    return Cheap(form.query.name, form.key.name, of_queries, of_keys)


@dataclass(eq=False)
class Seen:
    """Of one call: attention by blocks, edges kept by blocks, and per head [H]: edges `kept` of those `possible`, attention
    `held` by them of the `whole`, and how many of them the exact scores would keep too."""

    mass: Mass
    share: Any
    edges: Any = 0.0
    kept: Any = 0.0
    possible: Any = 0.0
    held: Any = 0.0
    whole: Any = 0.0
    hit: Any = 0.0

    def add(self, weights: Tensor, ranked: Tensor, start: int, keys: int) -> None:
        """weights [B, H, n, Sk] of queries from `start` on, 0 for keys that are not seen; `ranked` like them."""
        seen = weights > 0
        kept, exact = (_highest(each, seen, self.share) for each in (ranked, weights))
        counted = {"kept": kept, "possible": seen, "held": weights * kept, "whole": weights, "hit": kept & exact}
        for name, what in counted.items():
            setattr(self, name, getattr(self, name) + what.double().sum((0, 2, 3)))
        self.mass.add(blocked(weights.double().sum(0), self.mass.block, start), keys)
        self.edges = self.edges + _padded(blocked(kept.double().sum(0), self.mass.block, start)).cpu()


def _highest(scores: Tensor, seen: Tensor, share: Any) -> Tensor:
    """Which keys are kept of those seen."""
    counts = seen.sum(-1, keepdim=True)
    most = ((counts * share.numerator + share.denominator - 1) // share.denominator).clamp(min=1)
    scores = scores.masked_fill(~seen, float("-inf"))
    return (scores >= scores.sort(-1, descending=True).values.gather(-1, most - 1)) & seen


def _padded(table: Tensor) -> Tensor:
    return torch.nn.functional.pad(table, (0, LARGEST - table.shape[2], 0, LARGEST - table.shape[1]))


class _Sum(Watch):
    def __init__(self, graph_module: GraphModule, forms: Any, sums: dict[str, Sums]) -> None:
        super().__init__(graph_module, forms, None)
        self.sums = sums

    def seen(self, name: str, form: AttentionForm) -> None:
        self.sums[name].add(heads_first(self.env[form.query]), heads_first(self.env[form.key]))


class _Count(Watch):
    def __init__(
        self,
        graph_module: GraphModule,
        forms: Any,
        found: dict[str, Seen],
        real: Tensor | None,
        cheap: Mapping[str, Cheap],
    ) -> None:
        super().__init__(graph_module, forms, real)
        self.found, self.cheap = found, cheap

    def weights(self, name: str, weights: Tensor, start: int, keys: int) -> None:
        ranked = weights
        if name in self.cheap:
            form, cheap = self.forms[name][0], self.cheap[name]
            q, k = heads_first(self.env[form.query]).double(), heads_first(self.env[form.key]).double()
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            q = q[:, :, start : start + weights.shape[2]]
            ranked = (q @ cheap.of_queries.double()) @ (k @ cheap.of_keys.double()).mT
        self.found[name].add(weights, ranked, start, keys)
