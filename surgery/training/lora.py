"""Adapters: a change of low rank beside each linear layer, merged into its weight at the end."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, attribute, input_of, is_layer, is_op, weight_of
from surgery.passes.weights import add_tensor

SOURCE = "Hu et al., arXiv:2106.09685"


@dataclass(frozen=True)
class Adapter:
    """before  y = W x      after  y = W x + B (A x), A [r, K] random and B [M, r] zero at first, so that y stays

    `weight` is stored [M, K], or [K, M] where `turned` (addmm, x @ W); `names` are all its names in the graph.
    """

    weight: str
    names: tuple[str, ...]
    down: str
    up: str
    turned: bool
    dtype: torch.dtype

    @property
    def factors(self) -> tuple[str, str]:
        return self.down, self.up

    def merged(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """W + B A, in float32 at least, rounded once to the weight's dtype."""
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        change = (values[self.up].detach().to(wide) @ values[self.down].detach().to(wide)).to(wide)
        return (wide + (change.T if self.turned else change)).to(weight.dtype)


def adapt(module: GraphModule, rank: int, seed: int) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """Put an adapter beside every linear layer whose stored weight nothing but linear layers reads; and what is told.

    Layers that share a weight share its adapter. An embedding's table that is also the head has none: a change of the
    one would be a change of the other.
    """
    layers: dict[int, list[Node]] = {}
    for node in list(module.graph.nodes):
        if is_layer(node) and (weight := weight_of(node)) is not None:
            layers.setdefault(id(attribute(module, weight.target)), []).append(node)
    adapters, left = [], []
    for tensor, nodes in layers.items():
        reads = [node for node in module.graph.nodes if node.op == "get_attr"]
        reads = [node for node in reads if id(attribute(module, node.target)) == tensor]
        turned = {not is_op(node, aten.linear) for node in nodes}
        if {user for node in reads for user in node.users} - {*nodes} or len(turned) > 1:
            left.append(reads[0].target)
            continue
        names = tuple(dict.fromkeys(node.target for node in reads))
        adapters.append(_insert(module, nodes, names, turned.pop(), rank, seed + len(adapters)))
    note = f"no adapters at {', '.join(left[:3])}: something else reads the weight" if left else ""
    return tuple(adapters), (note,) if note else ()


def _insert(
    module: GraphModule, layers: list[Node], names: tuple[str, ...], turned: bool, rank: int, seed: int
) -> Adapter:
    weight = attribute(module, names[0])
    rows, columns = weight.shape[::-1] if turned else weight.shape
    rank = min(rank, rows, columns)
    wide = torch.promote_types(weight.dtype, torch.float32)
    chance = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=chance, dtype=torch.float32) / columns**0.5
    down = add_tensor(module, f"{names[0]}_adapter_down", down.to(weight.device, wide))
    up = add_tensor(module, f"{names[0]}_adapter_up", torch.zeros(rows, rank, dtype=wide, device=weight.device))
    for layer in layers:
        source = input_of(layer)
        with module.graph.inserting_after(layer):
            # A sum of its own for each layer: the layer's users read it from here on.
            total = module.graph.call_function(aten.add.Tensor, (layer, layer))
        layer.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
        with module.graph.inserting_before(total):
            factors = [module.graph.get_attr(name) for name in (down, up)]
            low = module.graph.call_function(aten.linear.default, (source, factors[0]))
            total.args = (layer, module.graph.call_function(aten.linear.default, (low, factors[1])))
    return Adapter(names[0], names, down, up, turned, weight.dtype)
