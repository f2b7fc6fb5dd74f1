"""Cut a feature axis down to some of its coordinates, in every place at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import RESHAPES
from surgery.anatomy.graphs import aten, attribute, bias_of, is_op, weight_of, width
from surgery.passes.weights import replace_tensor, set_linear


@dataclass(frozen=True, eq=False)
class Cut:
    """Where one axis is cut, by node name: the nodes that carry it, its producers and its consumers."""

    carriers: tuple[str, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CutDimension:
    """before  producers [D, …], consumers [M, D]      after  producers [n, …], consumers [M, n] with new weights

    `keep` [n] are the coordinates kept, ascending. `weights` gives a consumer's new weight [M, n] and bias [M] (or
    None) by the name of its weight; a consumer not named there loses its columns and nothing else. `tensors` replaces
    producers' tensors outright, by name.
    """

    clause: str
    place: str
    cuts: tuple[Cut, ...]
    keep: Tensor
    size: int
    weights: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "cut-dimension"

    def requires(self, graph_module: GraphModule) -> str | None:
        for node in self._nodes(graph_module, "carriers"):
            if width(node) != self.size:
                return f"`{node.name}` has width {width(node)}, not {self.size}"
        return None

    def run(self, graph_module: GraphModule) -> None:
        done: set[str] = set()
        for producer in self._nodes(graph_module, "producers"):
            self._cut_producer(graph_module, producer, done)
        for name in dict.fromkeys(weight_of(node).target for node in self._nodes(graph_module, "consumers")):
            if name in self.weights:
                set_linear(graph_module, name, *self.weights[name])
            else:
                self._take(graph_module, name, 1, done)
        for node in self._nodes(graph_module, "carriers"):
            self._resize(node)

    def ensures(self, graph_module: GraphModule) -> str | None:
        for node in self._nodes(graph_module, "carriers"):
            if width(node) != len(self.keep):
                return f"`{node.name}` still has width {width(node)}"
        return None

    def _nodes(self, graph_module: GraphModule, role: str) -> list[Node]:
        names = {name for cut in self.cuts for name in getattr(cut, role)}
        return [node for node in graph_module.graph.nodes if node.name in names]

    def _cut_producer(self, graph_module: GraphModule, node: Node, done: set[str]) -> None:
        if is_op(node, aten.linear):
            for tensor in filter(None, (weight_of(node), bias_of(node))):
                self._take(graph_module, tensor.target, 0, done)
        else:
            self._take(graph_module, (node if node.op == "get_attr" else weight_of(node)).target, -1, done)

    def _take(self, graph_module: GraphModule, name: str, axis: int, done: set[str]) -> None:
        """Cut a tensor once, however many nodes read it."""
        if name in done:
            return
        done.add(name)
        tensor, new = attribute(graph_module, name), self.tensors.get(name)
        compact = tensor.index_select(axis, self.keep.to(tensor.device)) if new is None else new
        replace_tensor(graph_module, name, compact)

    def _resize(self, node: Node) -> None:
        """Sizes written into reshapes follow the cut."""
        if node.op != "call_function" or node.target not in RESHAPES:
            return
        sizes = node.args[1] if len(node.args) > 1 else None
        if isinstance(sizes, list | tuple) and sizes and sizes[-1] == self.size:
            node.args = (node.args[0], [*sizes[:-1], len(self.keep)], *node.args[2:])
