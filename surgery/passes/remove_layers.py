"""Remove layers: what read a layer's output reads its input, and all that only the layer needed is gone."""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten
from surgery.anatomy.stream import Layer, alive, origin
from surgery.passes.weights import add_tensor, drop_unread


@dataclass(frozen=True, eq=False)
class RemoveLayers:
    """before  x → layer → y, read by others      after  x, read by others

    `layers` are those of the graph as captured; nodes are found again by name.
    """

    clause: str
    place: str
    layers: tuple[Layer, ...]
    name: str = "remove-layers"
    late: bool = True
    """Other cuts were planned on the whole graph: they come first."""

    def requires(self, graph_module: GraphModule) -> str | None:
        return _absent(graph_module, self.layers)

    def run(self, graph_module: GraphModule) -> None:
        graph = graph_module.graph
        layers = [_found(graph_module, layer) for layer in self.layers]
        stays = alive(graph, layers)
        for layer in layers:
            inside, source = layer.inside, origin(layer, layers)
            layer.exit.replace_all_uses_with(source, delete_user_cb=lambda user, inside=inside: user not in inside)
        for node in reversed(graph.nodes):
            if node not in stays and node.op != "placeholder":
                graph.erase_node(node)
        drop_unread(graph_module)

    def ensures(self, graph_module: GraphModule) -> str | None:
        there = {node.name for node in graph_module.graph.nodes}
        left = [layer.site.path for layer in self.layers if layer.exit.name in there]
        return f"`{left[0]}` is still there" if left else None


@dataclass(frozen=True, eq=False)
class MaskLayers:
    """The slow truth: every layer is computed, and what it adds is multiplied by 0.

    Where norms stand between its additions, its input is chosen in place of its output.
    """

    clause: str
    place: str
    layers: tuple[Layer, ...]
    name: str = "mask-layers"

    def requires(self, graph_module: GraphModule) -> str | None:
        return _absent(graph_module, self.layers)

    def run(self, graph_module: GraphModule) -> None:
        chosen: dict[Node, Node] = {}
        for layer in [_found(graph_module, layer) for layer in self.layers]:
            if not layer.adds:
                entry = chosen.get(layer.entry, layer.entry)
                chosen[layer.exit] = self._choose_input(graph_module, layer, entry)
            for add, delta in layer.adds:
                with graph_module.graph.inserting_before(add):
                    nothing = graph_module.graph.call_function(aten.mul.Scalar, (delta, 0.0))
                add.replace_input_with(delta, nothing)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _choose_input(self, graph_module: GraphModule, layer: Layer, entry: Node) -> Node:
        graph = graph_module.graph
        device = layer.exit.meta["val"].device
        name = add_tensor(graph_module, "surgery_mask", torch.tensor(True, device=device), parameter=False)
        with graph.inserting_after(layer.exit):
            hold = graph.call_function(aten.alias.default, (layer.exit,))
        own = layer.inside | {hold}
        layer.exit.replace_all_uses_with(hold, delete_user_cb=lambda user: user not in own)
        with graph.inserting_before(hold):
            chosen = graph.call_function(aten.where.self, (graph.get_attr(name), entry, layer.exit))
        hold.replace_all_uses_with(chosen)
        graph.erase_node(hold)
        return chosen


def _absent(graph_module: GraphModule, layers: tuple[Layer, ...]) -> str | None:
    names = {node.name for node in graph_module.graph.nodes}
    missing = [node.name for layer in layers for node in (layer.entry, layer.exit) if node.name not in names]
    return f"no node `{missing[0]}`" if missing else None


def _found(graph_module: GraphModule, layer: Layer) -> Layer:
    """The layer in another copy of its graph."""
    nodes: dict[str, Node] = {node.name: node for node in graph_module.graph.nodes}
    inside = frozenset(nodes[node.name] for node in layer.inside if node.name in nodes)
    adds = tuple((nodes[add.name], nodes[delta.name]) for add, delta in layer.adds)
    return Layer(layer.site, nodes[layer.entry.name], nodes[layer.exit.name], inside, adds)
