"""`budget=global`: one ranking over all sites of a clause says how many units each of them loses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.compensation.eliminate import ladder
from surgery.targets.context import Context
from surgery.targets.passage import Passage
from surgery.targets.taylor import taylor
from surgery.targets.unit_scores import weight_scores
from surgery.targets.watched import Layer, layer_of, watch


def shares(works: Sequence[Any], graph_module: GraphModule, context: Context) -> list[int]:
    """Units to remove from each of the works, in their order: together what the share says of all of them.

    What a unit costs is told as a share of what its site says, so that sites compare; by greedy (and auto) with data,
    as a share of the stream that it is added to, each unit after those that went before it. By taylor it is the loss
    itself. A site keeps one unit at least, and what it keeps is a multiple where the clause asks for one.
    """
    units = [work.count for work in works]
    heads = [getattr(work.site, "heads", 0) or work.count for work in works]
    total = works[0].options.share.of(sum(heads)) * sum(units) // sum(heads)
    multiple = works[0].options.multiple
    most = [count - max(1, min(multiple, count)) for count in units]
    costs = _costs(works, graph_module, context)
    rising = [torch.cummax(cost[:limit], 0).values for cost, limit in zip(costs, most, strict=True)]
    owner = torch.cat([torch.full((len(cost),), place) for place, cost in enumerate(rising)])
    cheapest = torch.sort(torch.cat(rising), stable=True).indices[:total]
    removed = torch.bincount(owner[cheapest], minlength=len(works)).tolist()
    kept = [-(-(count - gone) // multiple) * multiple for count, gone in zip(units, removed, strict=True)]
    return [count - min(left, count) for count, left in zip(units, kept, strict=True)]


def _costs(works: Sequence[Any], graph_module: GraphModule, context: Context) -> list[Tensor]:
    """What the units of each site cost, those that go first in front, float64."""
    options = works[0].options
    if "random" in (options.side, options.by):
        return [torch.linspace(0, 1, work.count).double() for work in works]
    layers = [layer_of(graph_module, work.coupling) for work in works]
    watched = context.calibration is not None and all(isinstance(layer, Layer) for layer in layers)
    if watched and options.by == "taylor":
        found = taylor(graph_module, context.calibration, {layer.node: layer.units for layer in layers})
        costs = [found[layer.node] for layer in layers]
    elif watched and options.by != "magnitude":
        return _ladders(layers, graph_module, context, reverse=options.side == "head")
    else:
        by = "magnitude" if options.by == "magnitude" else "effect"
        costs = [weight_scores(graph_module, work.coupling, by).square() for work in works]
        costs = [cost / cost.sum().clamp(min=1e-300) for cost in costs]
    return [cost.sort(descending=options.side == "head").values for cost in costs]


def _ladders(layers: list[Layer], graph_module: GraphModule, context: Context, *, reverse: bool) -> list[Tensor]:
    """In the original network: what each unit costs after those before it, all refitted, of the stream's power."""
    passage, found = Passage(graph_module, context.calibration), {}
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    for place in sorted(range(len(layers)), key=lambda at: order[layers[at].node]):
        layer = layers[place]
        context.progress("ranking all sites together", len(found), len(layers))
        reader = layer.reader(graph_module)
        seen = watch(passage, layer, len(reader.weight)).all
        costs = ladder(reader.spread(seen), reader.weight, layer.units) / passage.power(layer.node)
        found[place] = costs.flip(0) if reverse else costs
    return [found[place] for place in range(len(layers))]
