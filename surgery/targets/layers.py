"""`prune 2 layers`, `prune 25% of layers`: whole layers go, and the stream runs past them.

A layer's output is replaced by its input; the residual stream makes that a change of small size where the layer did
little. Weights that another layer reads as well stay.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import Parameter

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.flops import flops_per_sample
from surgery.anatomy.graphs import attribute, where
from surgery.anatomy.site import Anatomy, Site
from surgery.anatomy.stream import Layer, alive, removable, skips
from surgery.diagnostics import RefusalError
from surgery.passes.remove_layers import MaskLayers, RemoveLayers
from surgery.passes.runner import Pass
from surgery.plan.action import Action, TensorChange
from surgery.targets.choice import Candidate, Choice
from surgery.targets.clause import SEARCHED, OfClause, refuse_options
from surgery.targets.context import Context
from surgery.targets.influence import angular, magnitude, similarity

CRITERIA = ("auto", "magnitude", "similarity", "angular", "random")
TOLD = {
    "magnitude": "norm of the weights that write to the stream",
    "similarity": "1 - cosine of input and output",
    "angular": "angle between input and output, in units of π",
}


@dataclass(frozen=True, eq=False)
class Layers(OfClause):
    """`remove` of the `layers` that a selector named go; `blocks` are all there are. Numbers are those of the original.

    `options` is a `surgery.operations.prune.Prune`; `gone` are the layers that go, once that is settled.
    """

    options: Any
    layers: tuple[Layer, ...]
    blocks: tuple[Site, ...]
    remove: int
    notes: tuple[str, ...]
    gone: tuple[Layer, ...] = ()

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone. Until it is settled which layers go, the smallest are counted where they differ."""
        sizes = _own(graph_module, self.layers)
        going = self.gone or sorted(self.layers, key=sizes.__getitem__)[: self.remove]
        open_ = not self.gone and 0 < self.remove < len(self.layers) and len(set(sizes.values())) > 1
        notes = [*self.notes, *(["the layers differ in size: at least this much is saved"] if open_ else [])]
        named = ("side", "by", "seed")
        return Action(
            clause=self.clause,
            place=self.place,
            operation="prune",
            kind="block",
            sites=tuple(layer.site.path for layer in self.gone or self.layers),
            before={"layers": len(self.blocks)},
            after={"layers": len(self.blocks) - self.remove},
            tensors=tuple(_changes(graph_module, going)),
            flops=flops_per_sample(graph_module, alive(graph_module.graph) - alive(graph_module.graph, going)),
            notes=tuple(notes),
            settings={name: getattr(self.options, name) for name in named} | {"compensate": "none"},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Choice:
        """The numbers of the layers that stay, of all of them."""
        by, told = self._criterion(context)
        going = self.layers if self.remove == len(self.layers) else self._going(anatomy.graph_module, by, context, told)
        gone = sorted(layer.site.layer for layer in going)
        keep = [block.layer for block in self.blocks if block.layer not in gone]
        told.append(f"removed: {', '.join(layer.site.path for layer in going)}" if going else "nothing is removed")
        for layer in going if context.passage else ():
            context.passage.bypass(layer.entry, layer.exit)
        return Choice(torch.tensor(keep), Candidate(by, "none", 0.0), notes=tuple(told))

    def settle(self, choice: Choice) -> "Layers":
        """The same cut with the layers that go named."""
        return replace(self, gone=self._gone(choice))

    def passes(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        gone = self._gone(choice)
        return [RemoveLayers(self.clause, self.place, gone, name="prune")] if gone else []

    def reference(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        gone = self._gone(choice)
        return [MaskLayers(self.clause, self.place, gone)] if gone else []

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The criterion reversed, and three random choices; none where the layers are named outright."""
        if self.remove == len(self.layers):
            return
        if self.options.side != "random":
            other = "head" if self.options.side == "tail" else "tail"
            yield f"the {other} instead: the criterion reversed", {"side": other}
        for seed in range(3):
            yield f"random {seed}", {"side": "random", "by": "auto", "seed": seed}

    def _gone(self, choice: Choice) -> tuple[Layer, ...]:
        stays = set(choice.keep.tolist())
        return tuple(layer for layer in self.layers if layer.site.layer not in stays)

    def _criterion(self, context: Context) -> tuple[str, list[str]]:
        by = self.options.by
        if self.options.side == "random" or by == "random" or self.remove == len(self.layers):
            return "random" if self.remove < len(self.layers) else "selector", []
        if by == "auto":
            by = "similarity" if context.calibration else "magnitude"
            return by, [] if context.calibration else ["no data to calibrate on: ranked by magnitude"]
        if by != "magnitude" and context.calibration is None:
            raise RefusalError(
                f"`by {by}` needs data that passes the layers, and there is none",
                code="S323",
                span=self.options.clause.span if self.options.clause else None,
                help="name some with `data`, or rank `by magnitude`, which reads weights alone",
            )
        return by, []

    def _going(self, graph_module: GraphModule, by: str, context: Context, told: list[str]) -> list[Layer]:
        """Those that go, in graph order; a stack never loses its last layer."""
        if not self.remove:
            return []
        if by == "angular":
            return self._run(graph_module, context, told)
        if by == "random":
            chance = torch.Generator().manual_seed(self.options.seed)
            order = torch.randperm(len(self.layers), generator=chance).tolist()
        else:
            scores = self._scores(graph_module, by, context)
            rows = zip(self.layers, scores.tolist(), strict=True)
            told.append(f"{TOLD[by]}: " + ", ".join(f"{one:.4g} of layer {layer.site.layer}" for layer, one in rows))
            order = torch.argsort(scores, descending=self.options.side == "head", stable=True).tolist()
        left = Counter(stack(block) for block in self.blocks)
        going: list[Layer] = []
        for layer in (self.layers[place] for place in order):
            if len(going) < self.remove and left[stack(layer.site)] > 1:
                left[stack(layer.site)] -= 1
                going.append(layer)
        return sorted(going, key=lambda layer: layer.exit)

    def _scores(self, graph_module: GraphModule, by: str, context: Context) -> Tensor:
        if by == "magnitude":
            return magnitude(graph_module, self.layers)
        return similarity(graph_module, [(layer.entry, layer.exit) for layer in self.layers], context)

    def _run(self, graph_module: GraphModule, context: Context, told: list[str]) -> list[Layer]:
        """The run of consecutive layers whose input and output are closest; farthest with `head`."""
        runs = _runs(self.layers, self.remove, Counter(stack(block) for block in self.blocks))
        if not runs:
            raise self._refused(f"no {self.remove} of these layers follow each other in one stack and leave one there")
        scores = angular(graph_module, [(run[0].entry, run[-1].exit) for run in runs], context)
        rows = zip(runs, scores.tolist(), strict=True)
        told.append(f"{TOLD['angular']}: " + ", ".join(f"{score:.4g} of layers {_span(run)}" for run, score in rows))
        best = scores.argmax() if self.options.side == "head" else scores.argmin()
        return list(runs[int(best)])

    def _refused(self, message: str) -> RefusalError:
        span = self.options.clause.span if self.options.clause else None
        return RefusalError(message, code="S319", span=span, help="remove fewer, or rank them `by similarity`")


def stack(block: Site) -> str:
    """The container that a layer is one of: `encoder.block` of `encoder.block.3`."""
    return block.path.partition("@")[0].rpartition(".")[0]


def plan_layers(operation: Any, anatomy: Anatomy, sites: Sequence[Site]) -> list[Layers]:
    """One cut of all layers a selector names. Raises RefusalError: S319 where one cannot go, S313 where none would be
    left, S318 for an option that layers have not."""
    span = operation.clause.span if operation.clause else None
    _refuse_options(operation)
    blocks = anatomy.of_kind("block")
    layers = _layers(anatomy, blocks, sites, span)
    share = operation.share
    remove = share.of(len(layers))
    _refuse_empty(operation, blocks, layers, remove, span)
    notes = [SEARCHED] if share.auto else []
    if share.fraction is not None and share.fraction * len(layers) != remove:
        asked = float(share.fraction * len(layers))
        notes.append(f"{share} of {len(layers)} layers is {asked:.2f}: {remove} removed")
    return [Layers(operation, layers, blocks, remove, tuple(notes))]


def _layers(anatomy: Anatomy, blocks: Sequence[Site], sites: Sequence[Site], span: Any) -> tuple[Layer, ...]:
    """The layers of the sites; the other blocks are looked at for what skips ahead."""
    found = {block.path: removable(anatomy.graph_module, block) for block in blocks}
    leading = skips([layer for layer in found.values() if isinstance(layer, Layer)])
    chosen = []
    for site in sites:
        layer = found[site.path]
        obstacle = layer if isinstance(layer, Obstacle) else leading.get(layer)
        if obstacle is not None:
            raise RefusalError(
                f"layer {site.layer}, `{site.path}`, cannot go: {obstacle.reason}",
                code="S319",
                span=span,
                notes=[f"at {where(obstacle.node)}"],
                help=f"leave it out with `except layer {site.layer}`, or prune its heads and channels",
            )
        chosen.append(layer)
    return tuple(chosen)


def _refuse_options(operation: Any) -> None:
    given = {
        "by": operation.by not in CRITERIA,
        "scope": operation.scope != "shared",
        "budget": operation.budget != "site",
        "when": operation.when != "every",
        "multiple": operation.multiple != 1,
        "compensate": operation.compensate not in ("auto", "none"),
    }
    help = "rank layers `by similarity`, `by angular`, `by magnitude` or at `random`; leave the rest out"
    refuse_options(operation, given, "layers", help)


def _refuse_empty(
    operation: Any, blocks: Sequence[Site], layers: Sequence[Layer], remove: int, span: Any
) -> None:
    """Raise S313 where a stack of layers would lose its last one."""
    total, named = Counter(map(stack, blocks)), Counter(stack(layer.site) for layer in layers)
    most = sum(min(named[path], total[path] - 1) for path in named)
    whole = [path for path in named if named[path] == total[path]] if remove == len(layers) else []
    if remove <= most and not whole:
        return
    there = f" of `{whole[0]}`" if whole and len(total) > 1 else ""
    raise RefusalError(
        f"{operation.share} of {len(layers)} layers leaves none{there}",
        code="S313",
        span=span,
        help=f"remove at most {most} of them" if most else "a model needs a layer",
    )


def _changes(graph_module: GraphModule, removed: Sequence[Layer]) -> Iterator[TensorChange]:
    """The parameters that no node reads any more."""
    graph = graph_module.graph
    before, after = ({node.target for node in alive(graph, some) if node.op == "get_attr"} for some in ((), removed))
    for name in sorted(before - after):
        tensor = attribute(graph_module, name)
        if isinstance(tensor, Parameter):
            yield TensorChange(name, tuple(tensor.shape), (0,), tensor.element_size())


def _own(graph_module: GraphModule, layers: Sequence[Layer]) -> dict[Layer, int]:
    """Entries of the parameters that nothing outside of a layer reads."""
    readers: dict[str, set] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(node.target, set()).update(node.users)
    owners = {node: layer for layer in layers for node in layer.inside}
    sizes = dict.fromkeys(layers, 0)
    for name, users in readers.items():
        owned = {owners.get(user) for user in users}
        if len(owned) == 1 and None not in owned:
            sizes[owned.pop()] += attribute(graph_module, name).numel()
    return sizes


def _runs(layers: Sequence[Layer], length: int, total: Counter) -> list[tuple[Layer, ...]]:
    """Every run of `length` layers of which each reads the one before, and that leaves its stack one layer."""
    following = {layer.entry: layer for layer in layers}
    runs = []
    for first in layers:
        run = [first]
        while len(run) < length and run[-1].exit in following:
            run.append(following[run[-1].exit])
        if len(run) == length and total[stack(first.site)] > length:
            runs.append(tuple(run))
    return runs


def _span(run: Sequence[Layer]) -> str:
    first, last = run[0].site.layer, run[-1].site.layer
    return str(first) if first == last else f"{first}..{last}"
