"""What a cut of units comes to: sizes a person counts in, tensors, FLOPs. From shapes alone."""

from collections.abc import Iterator
from fractions import Fraction
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.flops import example
from surgery.anatomy.graphs import attribute, is_layer, is_op, placeholders, shape, weight_of
from surgery.anatomy.site import Site
from surgery.anatomy.units import Coupling
from surgery.anatomy.units.edits import kept
from surgery.anatomy.units.producers import PRODUCTS
from surgery.plan.action import TensorChange


def counted(site: Site, units: int, removed: int) -> dict[str, int]:
    """What a person counts in: channels, or heads and the key-value heads they share."""
    if site.kind != "attention":
        return {"width": units - removed}
    shown = {"heads": int((units - removed) * Fraction(site.heads, units))}
    if site.kv_heads != site.heads:
        alone = site.kv_heads == 1 and units > 1
        shown["kv_heads"] = 1 if alone else site.kv_heads * (units - removed) // units
    return shown


def changes(graph_module: GraphModule, coupling: Coupling, removed: Tensor) -> Iterator[TensorChange]:
    """Every tensor that shrinks when the units with these labels go."""
    shapes: dict[str, list[int]] = {}
    for (name, axis), labels in coupling.weights.items():
        after = shapes.setdefault(name, list(attribute(graph_module, name).shape))
        after[axis] = int(kept(labels, removed).sum())
    for name, after in shapes.items():
        tensor = attribute(graph_module, name)
        yield TensorChange(name, tuple(tensor.shape), tuple(after), tensor.element_size())


def flops(graph_module: GraphModule, shrunk: dict[str, int]) -> int:
    """Saved per sample at the length of the example inputs, in layers whose weights lose this many entries by name;
    what attention itself saves comes on top."""
    weights = [node for node in graph_module.graph.find_nodes(op="get_attr") if node.target in shrunk]
    layers = [(user, weight) for weight in weights for user in weight.users if is_layer(user) or is_op(user, *PRODUCTS)]
    owned = [(layer, weight) for layer, weight in layers if weight_of(layer) is weight]
    if not owned:
        return 0
    batch = next(sizes[0] for sizes in map(shape, placeholders(graph_module)) if sizes)
    return sum(2 * shrunk[weight.target] * _rows(layer, batch) for layer, weight in owned)


def _rows(layer: Node, batch: int | torch.SymInt) -> int:
    """How often a layer is applied for one sample of the example inputs."""
    return prod(map(example, shape(layer)[:-1])) // example(batch)

