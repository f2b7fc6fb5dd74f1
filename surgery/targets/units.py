"""`prune … of mlp channels`, `prune … of attention heads`: units of a layer go, and the layer shrinks.

A unit is what can go alone: a channel of a feed-forward layer, a head, or a whole group of heads that share their keys
and values. Everything coupled with it goes as well: rows of one weight, columns of the next, parts of fused weights.
With calibration data the layer that reads them is refitted, so that the rest makes up for what is gone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import attribute
from surgery.anatomy.site import Anatomy, Site
from surgery.anatomy.units import Coupling
from surgery.anatomy.units.edits import edits, kept
from surgery.diagnostics import RefusalError
from surgery.passes.cut_units import CutUnits, MaskUnits
from surgery.passes.runner import Pass
from surgery.passes.set_weights import SetWeights
from surgery.plan.action import Action
from surgery.targets.choice import Candidate, Choice
from surgery.targets.clause import OfClause
from surgery.targets.context import Context
from surgery.targets.taylor import taylor
from surgery.targets.unit_budget import shares
from surgery.targets.unit_choice import Problem, choose_by_data
from surgery.targets.unit_scores import read_by, shuffled, weight_scores
from surgery.targets.unit_sizes import changes, counted, flops
from surgery.targets.watched import Layer, layer_of, watch

NEED_DATA = ("activation", "taylor", "greedy")
REFITTED = ("greedy", "effect")
PLAIN = ("effect", "activation")
"""What `by auto` tries with calibration data, where the reading layer is refitted and where it is not."""
NO_DATA = "there is no data to calibrate on"
EVEN = "budget=global: an even share is shown; how much each site loses is found when the spec is applied"


@dataclass(frozen=True, eq=False)
class Units(OfClause):
    """One site whose `remove` least units go. `options` is a `surgery.operations.prune.Prune`; `peers` are all cuts of
    the same clause, this one among them; `settled` says that `remove` is final, whatever the budget."""

    options: Any
    site: Site
    coupling: Coupling
    remove: int
    notes: tuple[str, ...]
    peers: list["Units"] = field(default_factory=list, repr=False)
    settled: bool = False

    @property
    def count(self) -> int:
        """Units there are."""
        return len(self.coupling.units)

    @property
    def reader(self) -> Any:
        """The first node that reads the units: cuts are chosen in this order."""
        return self.coupling.consumers[0] if self.coupling.consumers else None

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone: any units, as all of them are of one size."""
        removed = torch.tensor(self.coupling.units[: self.remove], dtype=torch.int64)
        tensors = tuple(changes(graph_module, self.coupling, removed))
        named = ("side", "by", "budget", "multiple", "compensate", "seed")
        return Action(
            clause=self.clause,
            place=self.place,
            operation="prune",
            kind=self.site.kind,
            sites=(self.site.name,),
            before=counted(self.site, self.count, 0),
            after=counted(self.site, self.count, self.remove),
            tensors=tensors,
            flops=flops(graph_module, {change.name: change.parameters for change in tensors}),
            notes=self.notes,
            settings={name: getattr(self.options, name) for name in named},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Choice:
        """Which units stay, by their place in the order in which the consumer reads them, and what reads them refitted
        where there is data to calibrate on. Raises RefusalError (S323) for what needs data and has none."""
        graph_module = anatomy.graph_module
        if self.options.budget == "global" and not self.settled:
            return self.settle(self._share_of_all(graph_module, context)).choose(anatomy, context)
        layer = layer_of(graph_module, self.coupling) if context.calibration else NO_DATA
        if not self.remove or isinstance(layer, str):
            return self._by_weights(graph_module, layer if isinstance(layer, str) else "")
        if self.options.compensate == "none" and (self._random or self.options.by == "magnitude"):
            choice = self._by_weights(graph_module, "")
            if context.passage:
                self._tell(context, layer, graph_module, choice)
            return choice
        context = context if context.passage else context.begun(graph_module)
        context.progress(f"calibrating {self.site.name}", 0, 0)
        reader = layer.reader(graph_module)
        seen = watch(context.passage, layer, len(reader.weight))
        problem = Problem(graph_module, self.coupling, layer, reader, seen, self._taylor(graph_module, context, layer))
        choice = choose_by_data(problem, self.options, self._criteria(), self.remove)
        self._tell(context, layer, graph_module, choice)
        return choice

    def settle(self, choice: "Choice | int") -> "Units":
        """The same cut with the units that go counted: as many as were chosen."""
        remove = choice if isinstance(choice, int) else self.count - len(choice.keep)
        return replace(self, remove=remove, settled=True, notes=tuple(note for note in self.notes if note != EVEN))

    def passes(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        """The cut, then what was refitted; nothing when nothing is removed."""
        removed = self._removed(choice)
        if not len(removed):
            return []
        coupling = self.coupling
        weights = {place: _indices(labels, removed) for place, labels in coupling.weights.items()}
        gathers = {(g.user.name, g.operand.name, g.axis): _indices(g.labels, removed) for g in coupling.gathers}
        changed, _ = edits(coupling, removed)
        cut = CutUnits(self.clause, self.place, weights, changed, gathers, name="prune")
        tensors = {name: tensor for name, (tensor, _) in choice.tensors.items()}
        return [cut, SetWeights(self.clause, self.place, tensors=tensors, name="refit")] if tensors else [cut]

    def reference(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        """The same weights at full size, and the same units zeroed where their consumers read them."""
        removed = self._removed(choice)
        if not len(removed):
            return []
        read = read_by(self.coupling)
        masks = {node.name: kept(self.coupling.weights[place], removed).float() for node, place in read.items()}
        masked = MaskUnits(self.clause, self.place, masks)
        tensors = self._full(graph_module, choice)
        return [SetWeights(self.clause, self.place, tensors=tensors), masked] if tensors else [masked]

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same cut without compensation, the criterion reversed, and three random choices."""
        if self.options.compensate != "none":
            yield "the same without compensation", {"compensate": "none"}
        if not self._random:
            other = "head" if self.options.side == "tail" else "tail"
            yield f"the {other} instead: the criterion reversed", {"side": other}
        for seed in range(3):
            yield f"random {seed}", {"side": "random", "by": "auto", "seed": seed}

    @property
    def _random(self) -> bool:
        return "random" in (self.options.side, self.options.by)

    def _share_of_all(self, graph_module: GraphModule, context: Context) -> int:
        """What of all that goes is this site's, found for all of the clause at once."""
        works = [replace(each, options=self.options) for each in self.peers]
        key = ("budget", self.options, tuple(each.site.nodes for each in works))
        if key not in context.known:
            context.known[key] = shares(works, graph_module, context)
        return context.known[key][[each.site for each in works].index(self.site)]

    def _by_weights(self, graph_module: GraphModule, why: str) -> Choice:
        """The units that count least by their weights; refused where what was asked for needs more."""
        asked = [f"by {self.options.by}"] if self.options.by in NEED_DATA else []
        asked += ["compensate=least-squares"] if self.options.compensate == "least-squares" else []
        if why and asked:
            unfed = why == NO_DATA
            data = 'name data to calibrate on, as in `data text:"corpus.txt"`; `by effect` needs none'
            raise RefusalError(
                f"`{asked[0]}` {'needs calibration data' if unfed else 'does not work'} for `{self.site.name}`: {why}",
                code="S323",
                span=self.options.clause.span if self.options.clause else None,
                help=data if unfed else "write `by effect` without `compensate`, or leave this part out with `except`",
            )
        by = "random" if self._random else "effect" if self.options.by == "auto" else self.options.by
        if self._random:
            order = shuffled(self.count, self.options.seed)
        else:
            scores = weight_scores(graph_module, self.coupling, by if by == "magnitude" else "effect")
            order = torch.argsort(scores, descending=self.options.side == "head", stable=True)
        notes = (f"{self.site.name} is not refitted: {why}",) if why and why != NO_DATA else ()
        return Choice(order[self.remove :].sort().values, Candidate(by, "none", 0.0), notes=notes)

    def _criteria(self) -> tuple[str, ...]:
        if self._random:
            return ("random",)
        if self.options.by != "auto":
            return (self.options.by,)
        return PLAIN if self.options.compensate == "none" else REFITTED

    def _taylor(self, graph_module: GraphModule, context: Context, layer: Layer) -> dict[str, Tensor]:
        """Scores of this site, computed for all cuts of the clause at once."""
        if self.options.by != "taylor":
            return {}
        found = [layer_of(graph_module, each.coupling) for each in self.peers or [self]]
        layers = {each.node: each.units for each in found if isinstance(each, Layer)}
        key = ("taylor", tuple(layers))
        if key not in context.known:
            context.known[key] = taylor(graph_module, context.calibration, layers)
        return {"taylor": context.known[key][layer.node]}

    def _full(self, graph_module: GraphModule, choice: Choice) -> dict[str, Tensor]:
        """The refitted tensors at full size; what is gone keeps the values it had."""
        found = {}
        for name, (tensor, axis) in choice.tensors.items():
            old = attribute(graph_module, name).detach()
            keep = None if axis is None else _indices(self.coupling.weights[name, axis], self._removed(choice))
            found[name] = tensor if axis is None else old.index_copy(axis, keep.to(old.device), tensor.to(old.device))
        return found

    def _tell(self, context: Context, layer: Layer, graph_module: GraphModule, choice: Choice) -> None:
        """The passage goes on with the cut layer: columns of what is gone are zero."""
        weight = attribute(graph_module, layer.weight).detach()
        full = self._full(graph_module, choice).get(layer.weight, weight)
        stays = kept(self.coupling.weights[layer.weight, layer.axis], self._removed(choice)).to(weight)
        masked = full * (stays[None] if layer.axis else stays[:, None])
        bias = choice.tensors.get(layer.bias, (None,))[0] if layer.bias else None
        context.passage.change(layer.node, masked, bias)

    def _removed(self, choice: Choice) -> Tensor:
        stays = torch.zeros(self.count, dtype=torch.bool).index_fill(0, choice.keep, True)
        return torch.tensor(self.coupling.units)[~stays]


def _indices(labels: Tensor, removed: Tensor) -> Tensor:
    return kept(labels, removed).nonzero()[:, 0]
