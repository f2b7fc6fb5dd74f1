"""`prune … of mlp channels`, `prune … of attention heads`: units of a layer go, and the layer shrinks.

A unit is what can go alone: a channel of a feed-forward layer, a head, or a whole group of heads that share their keys
and values. Everything coupled with it goes as well: rows of one weight, columns of the next, parts of fused weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.graphs import attribute, is_layer, is_op, placeholders, shape, weight_of, where
from surgery.anatomy.site import Anatomy, Site
from surgery.anatomy.units import Coupling, trace_units
from surgery.anatomy.units.edits import edits, kept
from surgery.anatomy.units.producers import PRODUCTS, layer_weight
from surgery.diagnostics import RefusalError
from surgery.operations import sentence
from surgery.passes.cut_units import CutUnits, MaskUnits
from surgery.passes.runner import Pass
from surgery.plan.action import Action, TensorChange
from surgery.targets.choice import Candidate, Choice
from surgery.targets.context import Context

UNITS = {"mlp": "channels", "attention": "heads"}
CRITERIA = ("auto", "magnitude", "effect")


@dataclass(frozen=True, eq=False)
class Units:
    """One site whose `remove` least units go. `options` is a `surgery.operations.prune.Prune`."""

    options: Any
    site: Site
    coupling: Coupling
    remove: int
    notes: tuple[str, ...]

    @property
    def clause(self) -> str:
        return str(self.options.clause or sentence(self.options))

    @property
    def place(self) -> str:
        return self.options.clause.place if self.options.clause else ""

    @property
    def count(self) -> int:
        """Units there are."""
        return len(self.coupling.units)

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone: any units, as all of them are of one size."""
        removed = torch.tensor(self.coupling.units[: self.remove], dtype=torch.int64)
        before, after = self._sizes(0), self._sizes(self.remove)
        named = ("side", "by", "multiple", "seed")
        return Action(
            clause=self.clause,
            place=self.place,
            operation="prune",
            kind=self.site.kind,
            sites=(self.site.name,),
            before=before,
            after=after,
            tensors=tuple(self._changes(graph_module, removed)),
            flops=self._flops(graph_module, removed),
            notes=self.notes,
            settings={name: getattr(self.options, name) for name in named} | {"compensate": "none"},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Choice:
        """Which units stay, by their place in the order in which the consumer reads them."""
        order = self._order(anatomy.graph_module)
        keep = order[self.remove :].sort().values
        by = "random" if self.options.side == "random" else self._criterion
        return Choice(keep, Candidate(by, "none", 0.0))

    def passes(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        """The cut; nothing when nothing is removed."""
        removed = self._removed(choice)
        if not len(removed):
            return []
        coupling = self.coupling
        weights = {place: _indices(labels, removed) for place, labels in coupling.weights.items()}
        gathers = {(g.user.name, g.operand.name, g.axis): _indices(g.labels, removed) for g in coupling.gathers}
        changed, _ = edits(coupling, removed)
        return [CutUnits(self.clause, self.place, weights, changed, gathers, name="prune")]

    def reference(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        """The same units zeroed where their consumers read them."""
        removed = self._removed(choice)
        weights = self.coupling.weights
        masks = {node.name: kept(weights[place], removed).float() for node, place in self._read().items()}
        return [MaskUnits(self.clause, self.place, masks)] if len(removed) else []

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The criterion reversed, and three random choices."""
        if self.options.side != "random":
            other = "head" if self.options.side == "tail" else "tail"
            yield f"the {other} instead: the criterion reversed", {"side": other}
        for seed in range(3):
            yield f"random {seed}", {"side": "random", "by": "auto", "seed": seed}

    @property
    def _criterion(self) -> str:
        return "effect" if self.options.by == "auto" else self.options.by

    def _removed(self, choice: Choice) -> Tensor:
        stays = torch.zeros(self.count, dtype=torch.bool).index_fill(0, choice.keep, True)
        return torch.tensor(self.coupling.units)[~stays]

    def _order(self, graph_module: GraphModule) -> Tensor:
        """Places of the units, those that go first in front. Ties go by place."""
        if self.options.side == "random":
            return torch.randperm(self.count, generator=torch.Generator().manual_seed(self.options.seed))
        scores = self._scores(graph_module)
        return torch.argsort(scores, descending=self.options.side == "head", stable=True)

    def _scores(self, graph_module: GraphModule) -> Tensor:
        """[units] float64. magnitude: the norm of all that belongs to a unit; effect: the norm of what makes it times
        the norm of what reads it, which no rescaling between the two layers can change."""
        consumed = set(self._read().values())
        made, read = torch.zeros(self.count).double(), torch.zeros(self.count).double()
        for (name, axis), labels in self.coupling.weights.items():
            tensor = attribute(graph_module, name).detach().double()
            squares = tensor.square().movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1).cpu()
            into = read if (name, axis) in consumed else made
            into += self._gathered(squares, labels)
        return (made + read).sqrt() if self._criterion == "magnitude" else (made * read).sqrt()

    def _gathered(self, squares: Tensor, labels: Tensor) -> Tensor:
        """Sums per unit of a value per index."""
        places = {label: place for place, label in enumerate(self.coupling.units)}
        index = torch.tensor([places.get(label, self.count) for label in labels.tolist()])
        return torch.zeros(self.count + 1, dtype=torch.float64).index_add(0, index, squares)[: self.count]

    def _read(self) -> dict[Node, tuple[str, int]]:
        """Consumer → the weight and its axis that read the units."""
        found = {}
        for node in self.coupling.consumers:
            weight, made, _ = layer_weight(node)
            found[node] = weight.target, 1 - made
        return found

    def _sizes(self, removed: int) -> dict[str, int]:
        """What a person counts in: channels, or heads and the key-value heads they share."""
        if self.site.kind != "attention":
            return {"width": self.count - removed}
        per = Fraction(self.site.heads, self.count)
        shown = {"heads": int((self.count - removed) * per)}
        if self.site.kv_heads != self.site.heads:
            alone = self.site.kv_heads == 1 and self.count > 1
            shown["kv_heads"] = 1 if alone else self.site.kv_heads * (self.count - removed) // self.count
        return shown

    def _changes(self, graph_module: GraphModule, removed: Tensor) -> Iterator[TensorChange]:
        shapes: dict[str, list[int]] = {}
        for (name, axis), labels in self.coupling.weights.items():
            after = shapes.setdefault(name, list(attribute(graph_module, name).shape))
            after[axis] = int(kept(labels, removed).sum())
        for name, after in shapes.items():
            tensor = attribute(graph_module, name)
            yield TensorChange(name, tuple(tensor.shape), tuple(after), tensor.element_size())

    def _flops(self, graph_module: GraphModule, removed: Tensor) -> int:
        """Saved per sample at the length of the example inputs, in layers; what attention itself saves comes on top."""
        shrunk = {change.name: change.parameters for change in self._changes(graph_module, removed)}
        layers = (node for node in graph_module.graph.nodes if is_layer(node) or is_op(node, *PRODUCTS))
        owned = ((node, weight_of(node)) for node in layers)
        return sum(2 * shrunk.get(weight.target, 0) * _rows(node) for node, weight in owned if weight is not None)


def plan_units(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[Units]:
    """A cut per site. Raises RefusalError: S317 where a site cannot be cut, S313 where nothing would be left, S318 for
    an option that this target has not."""
    span = operation.clause.span if operation.clause else None
    _refuse_options(operation, span)
    works = []
    for site in sites:
        seeds = site.up if site.kind == "mlp" else [node for node in site.projections if _behind(site, node)]
        coupling = trace_units(anatomy.graph_module, seeds)
        remove, notes = _count(operation, site, coupling, span)
        removed = torch.tensor(coupling.units[: max(1, remove)], dtype=torch.int64)
        _refuse(site, [*coupling.obstacles, *edits(coupling, removed)[1]], span)
        works.append(Units(operation, site, coupling, remove, notes))
    return works


def _behind(site: Site, node: Node) -> bool:
    """Whether a projection makes q, k or v rather than reading the heads' outputs."""
    return node < site.nodes[0]


def _refuse_options(operation: Any, span: Any) -> None:
    given = {
        "by": operation.by not in CRITERIA,
        "scope": operation.scope != "shared",
        "when": operation.when != "every",
    }
    given["compensate"] = operation.compensate not in ("auto", "none")
    wrong = [name for name, bad in given.items() if bad]
    if wrong:
        raise RefusalError(
            f"`{wrong[0]}={getattr(operation, wrong[0])}` is not for heads and channels",
            code="S318",
            span=span,
            help="rank heads and channels `by effect` or `by magnitude`; leave the rest out",
        )


def _refuse(site: Site, found: Sequence[Obstacle], span: Any) -> None:
    """Raise where something forbids the cut: what reads the units otherwise, or a size that cannot follow."""
    if not found:
        return
    raise RefusalError(
        f"cannot cut {UNITS[site.kind]} of `{site.name}`: {where(found[0].node)}: {found[0].reason}",
        code="S317",
        span=span,
        notes=[f"{where(each.node)}: {each.reason}" for each in found[1:4]],
        help="leave this site out with `except`, or prune another part of the model",
    )


def _count(operation: Any, site: Site, coupling: Coupling, span: Any) -> tuple[int, tuple[str, ...]]:
    """Units to remove: the share of what a person counts in, in whole units; what is kept up to the multiple."""
    units, what = len(coupling.units), UNITS[site.kind]
    total = site.heads if site.kind == "attention" else units
    if units < 2:
        _refuse(site, coupling.obstacles, span)
        mixing = coupling.mixed[0] if coupling.mixed else None
        raise RefusalError(
            f"the {what} of `{site.name}` can only go all together",
            code="S317",
            span=span,
            notes=[f"{where(mixing)} mixes them"] if mixing is not None else (),
            help="leave this site out with `except`",
        )
    asked = operation.share.of(total)
    remove = int(Fraction(asked * units, total))
    keep = min(ceil((units - remove) / operation.multiple) * operation.multiple, units)
    if keep < 1 or asked >= total:
        raise RefusalError(
            f"{operation.share} of {total} {what} leaves none",
            code="S313",
            span=span,
            help=f"remove at most {total - total // units} of them",
        )
    notes = []
    if units != total and site.kv_heads > 1:
        notes.append(f"{total} heads go in {units} groups that share keys and values: whole groups are removed")
    if (units - keep) * total != asked * units:
        notes.append(f"{asked} of {total} {what} asked for, {(units - keep) * total // units} removed")
    return units - keep, tuple(notes)


def _indices(labels: Tensor, removed: Tensor) -> Tensor:
    return kept(labels, removed).nonzero()[:, 0]


def _rows(layer: Node) -> int:
    """How often a layer is applied for one sample of the example inputs."""
    batch = next(sizes[0] for sizes in map(shape, placeholders(layer.graph.owning_module)) if sizes)
    return prod(map(_example, shape(layer)[:-1])) // _example(batch)


def _example(size: int | torch.SymInt) -> int:
    """A size as it was in the example inputs."""
    return size if isinstance(size, int) else size.node.hint
