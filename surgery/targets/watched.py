"""The layer that reads a site's units, watched on calibration data."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, attribute, bias_of, is_op, weight_of
from surgery.anatomy.units import Coupling
from surgery.anatomy.units.producers import PRODUCTS
from surgery.compensation.observed import Observed, Settled
from surgery.compensation.reconstruct import Reader
from surgery.targets.passage import Passage
from surgery.targets.unit_scores import places_of, read_by

HELD_OUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class Layer:
    """The one layer that reads the units. `units` [U, d] are the features of each; `weight` and `bias` tensors' names,
    `axis` the one of the weight that features are on."""

    node: Node
    weight: str
    axis: int
    bias: str | None
    units: Tensor

    def reader(self, graph_module: GraphModule) -> Reader:
        weight = attribute(graph_module, self.weight).detach().double().cpu()
        bias = None if self.bias is None else attribute(graph_module, self.bias).detach().double().cpu()
        return Reader(weight if self.axis else weight.T, bias)

    def features(self, units: Tensor, width: int) -> Tensor:
        """Features that are left when only some units [n] are, ascending; those of no unit stay."""
        gone = torch.ones(len(self.units), dtype=torch.bool).index_fill(0, units, False)
        return torch.ones(width, dtype=torch.bool).index_fill(0, self.units[gone].flatten(), False).nonzero()[:, 0]

    def stored(self, weight: Tensor) -> Tensor:
        """A weight [M, n] as the graph stores it."""
        return weight if self.axis else weight.T


@dataclass(frozen=True, eq=False)
class Seen:
    """What the layer was seen to read: rows to fit on, rows held out, and all of them."""

    fit: Settled
    held: Settled
    all: Settled


def layer_of(graph_module: GraphModule, coupling: Coupling) -> Layer | str:
    """The layer to watch and refit, or the reason why there is none."""
    if len(coupling.consumers) != 1:
        return f"{len(coupling.consumers)} layers read the units"
    (node,) = coupling.consumers
    if not (is_op(node, aten.linear, aten.addmm, *PRODUCTS) and weight_of(node)):
        return "the units are read by a convolution"
    weight, axis = read_by(coupling)[node]
    if not attribute(graph_module, weight).is_floating_point():
        return f"`{weight}` is not made of floating-point numbers"
    if sum(len(each.users) for each in graph_module.graph.nodes if each.op == "get_attr" and each.target == weight) > 1:
        return f"`{weight}` is used more than once"
    places = places_of(coupling, coupling.weights[weight, axis])
    features = [(places == unit).nonzero()[:, 0] for unit in range(len(coupling.units))]
    if len(set(map(len, features))) != 1:
        return "its units are of several sizes"
    return Layer(node, weight, axis, _own_bias(graph_module, node), torch.stack(features))


def watch(passage: Passage, layer: Layer, outputs: int) -> Seen:
    """Pass the calibration data on to the layer and sum up what it reads; every eighth batch is held out."""
    sums: list[Observed] = []
    for place, (rows, drift) in enumerate(passage.at(layer.node)):
        if not sums:
            start = rows.double().mean(0)
            sums = [Observed(start, outputs), Observed(start, outputs)]
        sums[place % HELD_OUT_EVERY == HELD_OUT_EVERY // 2].add(rows, drift)
    fit, held = sums
    held = held if held.count else fit
    return Seen(fit.settled(), held.settled(), fit.settled() if held is fit else (fit + held).settled())


def _own_bias(graph_module: GraphModule, node: Node) -> str | None:
    """The layer's bias where it is the layer's alone, and a vector."""
    found = node.args[0] if is_op(node, aten.addmm) else None if is_op(node, *PRODUCTS) else bias_of(node)
    if not isinstance(found, Node) or found.op != "get_attr":
        return None
    readers = [each for each in graph_module.graph.nodes if each.op == "get_attr" and each.target == found.target]
    alone = sum(len(each.users) for each in readers) == 1
    return found.target if alone and attribute(graph_module, found.target).dim() == 1 else None
