"""What a unit counts for by the weights alone."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import attribute
from surgery.anatomy.units import Coupling
from surgery.anatomy.units.producers import layer_weight

PART = 1 << 16
"""Entries that are squared at once."""


def weight_scores(graph_module: GraphModule, coupling: Coupling, by: str) -> Tensor:
    """[units] float64. magnitude: the norm of all that belongs to a unit; effect: the norm of what makes it times the
    norm of what reads it, which no rescaling between the two layers can change."""
    consumed = set(read_by(coupling).values())
    made, read = torch.zeros(len(coupling.units)).double(), torch.zeros(len(coupling.units)).double()
    units = torch.tensor(coupling.units, dtype=torch.int64)
    for (name, axis), labels in coupling.weights.items():
        into = read if (name, axis) in consumed else made
        into += _gathered(units, squares(attribute(graph_module, name).detach(), axis), labels)
    return (made + read).sqrt() if by == "magnitude" else (made * read).sqrt()


def squares(tensor: Tensor, axis: int) -> Tensor:
    """[n] float64 on the CPU: the sum of squares at every index of an axis. Read in parts that stay in the cache, and
    squared in float32, or in float64 what is."""
    rows = PART // max(1, tensor[:1].numel()) if tensor.device.type == "cpu" else len(tensor)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    parts = (part.to(wide).square() for part in tensor.split(max(1, rows)))
    others = [other for other in range(tensor.dim()) if other != axis]
    sums = [(part.sum(others) if others else part).double() for part in parts]
    return (torch.cat(sums) if axis == 0 else torch.stack(sums).sum(0)).cpu()


def read_by(coupling: Coupling) -> dict[Node, tuple[str, int]]:
    """Consumer → the weight and its axis that read the units."""
    found = {}
    for node in coupling.consumers:
        weight, made, _ = layer_weight(node)
        found[node] = weight.target, 1 - made
    return found


def places_of(coupling: Coupling, labels: Tensor) -> Tensor:
    """The unit that each index belongs to, by its place among the units; their number for what belongs to none."""
    return _places(torch.tensor(coupling.units, dtype=torch.int64), labels)


def _places(units: Tensor, labels: Tensor) -> Tensor:
    size = 2 + max((int(each.max()) for each in (units, labels) if each.numel()), default=0)
    table = torch.full((size,), len(units))
    table[units] = torch.arange(len(units))
    return table[labels]  # what belongs to none is -1: the last entry, which is no unit's


def shuffled(count: int, seed: int) -> Tensor:
    """The units in any order, the same for the same seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _gathered(units: Tensor, squares: Tensor, labels: Tensor) -> Tensor:
    """Sums per unit of a value per index."""
    sums = torch.zeros(len(units) + 1, dtype=torch.float64)
    return sums.index_add(0, _places(units, labels), squares)[: len(units)]
