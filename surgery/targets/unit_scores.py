"""What a unit counts for by the weights alone."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import attribute
from surgery.anatomy.units import Coupling
from surgery.anatomy.units.producers import layer_weight


def weight_scores(graph_module: GraphModule, coupling: Coupling, by: str) -> Tensor:
    """[units] float64. magnitude: the norm of all that belongs to a unit; effect: the norm of what makes it times the
    norm of what reads it, which no rescaling between the two layers can change."""
    consumed = set(read_by(coupling).values())
    made, read = torch.zeros(len(coupling.units)).double(), torch.zeros(len(coupling.units)).double()
    for (name, axis), labels in coupling.weights.items():
        tensor = attribute(graph_module, name).detach().double()
        squares = tensor.square().movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1).cpu()
        into = read if (name, axis) in consumed else made
        into += _gathered(coupling, squares, labels)
    return (made + read).sqrt() if by == "magnitude" else (made * read).sqrt()


def read_by(coupling: Coupling) -> dict[Node, tuple[str, int]]:
    """Consumer → the weight and its axis that read the units."""
    found = {}
    for node in coupling.consumers:
        weight, made, _ = layer_weight(node)
        found[node] = weight.target, 1 - made
    return found


def places_of(coupling: Coupling, labels: Tensor) -> Tensor:
    """The unit that each index belongs to, by its place among the units; their number for what belongs to none."""
    places = {label: place for place, label in enumerate(coupling.units)}
    return torch.tensor([places.get(label, len(coupling.units)) for label in labels.tolist()])


def shuffled(count: int, seed: int) -> Tensor:
    """The units in any order, the same for the same seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _gathered(coupling: Coupling, squares: Tensor, labels: Tensor) -> Tensor:
    """Sums per unit of a value per index."""
    units = len(coupling.units)
    return torch.zeros(units + 1, dtype=torch.float64).index_add(0, places_of(coupling, labels), squares)[:units]
