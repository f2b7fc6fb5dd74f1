"""Zero coordinates of a vector where it stands: the paper's pruning, and the slow truth compaction is compared with."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.graphs import aten
from surgery.passes.weights import add_tensor


@dataclass(frozen=True, eq=False)
class Window:
    """Mask only while `low` ≤ timestep ≤ `high`; `timestep` names the placeholder [B] the network is told it by."""

    timestep: str
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class MaskVector:
    """before  c [B, D]      after  c with `remove` coordinates set to 0

    With `keep` [n] the same coordinates are zeroed in every vector. Without it each vector loses its own: the
    `remove` smallest (`side` tail) or largest (head) by |c|, or by |SiLU(c)| when `by` is activation.
    `window` limits the mask to some timesteps. Source: Pham et al., arXiv:2602.21596, section on pruning.
    """

    clause: str
    place: str
    vectors: tuple[str, ...]
    size: int
    remove: int
    keep: Tensor | None = None
    side: str = "tail"
    by: str = "magnitude"
    window: Window | None = None
    name: str = "mask-vector"

    def requires(self, graph_module: GraphModule) -> str | None:
        names = {node.name for node in graph_module.graph.nodes}
        missing = [name for name in self.vectors if name not in names]
        return f"no node `{missing[0]}`" if missing else None

    def run(self, graph_module: GraphModule) -> None:
        graph = graph_module.graph
        vectors = [node for node in graph.nodes if node.name in self.vectors]
        mask_name = self._register_mask(graph_module, vectors[0])
        for vector in vectors:
            with graph.inserting_after(vector):
                hold = graph.call_function(aten.alias.default, (vector,))
            vector.replace_all_uses_with(hold, delete_user_cb=lambda user, hold=hold: user is not hold)
            with graph.inserting_before(hold):
                masked = self._shared(graph, vector, mask_name) if mask_name else self._own(graph, vector)
                masked = self._in_window(graph_module, vector, masked) if self.window else masked
            hold.replace_all_uses_with(masked)
            graph.erase_node(hold)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _register_mask(self, graph_module: GraphModule, vector: Node) -> str | None:
        if self.keep is None:
            return None
        like = vector.meta["val"]
        mask = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        mask[self.keep.to(like.device)] = 1
        return add_tensor(graph_module, "surgery_mask", mask, parameter=False)

    def _shared(self, graph: Graph, vector: Node, mask_name: str) -> Node:
        mask = graph.call_function(aten.type_as.default, (graph.get_attr(mask_name), vector))
        return graph.call_function(aten.mul.Tensor, (vector, mask))

    def _own(self, graph: Graph, vector: Node) -> Node:
        score = graph.call_function(aten.silu.default, (vector,)) if self.by == "activation" else vector
        score = graph.call_function(aten.abs.default, (score,))
        largest = self.side == "head"
        top = graph.call_function(aten.topk.default, (score, self.remove, -1, largest, False))
        index = graph.call_function(operator.getitem, (top, 1))
        return graph.call_function(aten.scatter.value, (vector, -1, index, 0.0))

    def _in_window(self, graph_module: GraphModule, vector: Node, masked: Node) -> Node:
        graph = graph_module.graph
        timestep = next(node for node in graph.nodes if node.op == "placeholder" and node.name == self.window.timestep)
        late = graph.call_function(aten.ge.Scalar, (timestep, self.window.low))
        early = graph.call_function(aten.le.Scalar, (timestep, self.window.high))
        inside = graph.call_function(aten.logical_and.default, (late, early))
        ones = [1] * (vector.meta["val"].dim() - 1)
        inside = graph.call_function(aten.reshape.default, (inside, [-1, *ones]))
        return graph.call_function(aten.where.self, (inside, masked, vector))
