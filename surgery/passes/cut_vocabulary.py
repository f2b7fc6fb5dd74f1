"""Remove tokens from a vocabulary: table and head lose rows, the scores an axis's places, and ids are other numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import RESHAPES
from surgery.anatomy.graphs import aten, attribute, width
from surgery.anatomy.vocabulary import Vocabulary
from surgery.passes.weights import add_tensor, replace_tensor

IDS = "vocabulary.old_to_new"
"""The name of the table from old ids to new in a model that is fed old ones."""


@dataclass(frozen=True, eq=False)
class CutVocabulary:
    """before  table [V, D], head [V, D], scores [.., V], ids of V tokens
    after   table [V', D], head [V', D], scores [.., V'], ids of V' tokens, or of V that the model maps itself

    keep   [V'] old ids that stay, ascending
    remap  [V] int64, old id → new id, -1 for one that is gone and has none to stand in for it; None: new ids are fed
    """

    clause: str
    place: str
    vocabulary: Vocabulary
    keep: Tensor
    remap: Tensor | None = None
    name: str = "cut-vocabulary"

    def requires(self, graph_module: GraphModule) -> str | None:
        names = {node.name for node in graph_module.graph.nodes}
        missing = [node.name for node in self.vocabulary.lookups if node.name not in names]
        return f"no node `{missing[0]}`" if missing else None

    def run(self, graph_module: GraphModule) -> None:
        for name, axis in self.vocabulary.weights:
            tensor = attribute(graph_module, name)
            replace_tensor(graph_module, name, tensor.index_select(axis, self.keep.to(tensor.device)))
        for node in _nodes(graph_module, self.vocabulary.scores):
            self._resize(node)
        lookups, new = _nodes(graph_module, self.vocabulary.lookups), self._numbers()
        for node in lookups:
            node.args = (*node.args[:2], *(new[one] for one in node.args[2:3]), *node.args[3:])
        if self.remap is not None:
            take(graph_module, lookups, IDS, self.remap)
            return
        for node in _nodes(graph_module, self.vocabulary.comparisons):
            node.args = (node.args[0], new[node.args[1]], *node.args[2:])

    def ensures(self, graph_module: GraphModule) -> str | None:
        wrong = [node.name for node in _nodes(graph_module, self.vocabulary.scores) if width(node) != len(self.keep)]
        return f"`{wrong[0]}` still has another width" if wrong else None

    def _numbers(self) -> dict[int, int]:
        """Old id → new id; what is no id stays as it is, and no token has the number of one that is gone."""
        new = {old: place for place, old in enumerate(self.keep.tolist())}
        return _Ids((old, new.get(old, -1)) for old in range(self.vocabulary.rows))

    def _resize(self, node: Node) -> None:
        """Sizes written into reshapes follow the cut."""
        sizes = node.args[1] if node.op == "call_function" and node.target in RESHAPES and len(node.args) > 1 else None
        if isinstance(sizes, list | tuple) and sizes and sizes[-1] == self.vocabulary.rows:
            node.args = (node.args[0], [*sizes[:-1], len(self.keep)], *node.args[2:])


@dataclass(frozen=True, eq=False)
class SelectVocabulary:
    """The slow truth: every tensor at full size; ids become the original's before anything reads them, and of the scores
    those of kept tokens are picked.

    back  [V'] or [V] int64: the id fed → the original's id that it stands for
    """

    clause: str
    place: str
    vocabulary: Vocabulary
    keep: Tensor
    back: Tensor
    at_lookups: bool
    name: str = "select-vocabulary"

    def requires(self, graph_module: GraphModule) -> str | None:
        return None

    def run(self, graph_module: GraphModule) -> None:
        if self.at_lookups:
            take(graph_module, _nodes(graph_module, self.vocabulary.lookups), "surgery_ids", self.back)
        else:
            self._at_the_door(graph_module)
        self._pick(graph_module)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None

    def _at_the_door(self, graph_module: GraphModule) -> None:
        graph = graph_module.graph
        inputs = _nodes(graph_module, self.vocabulary.inputs)
        first = next(node for node in graph.nodes if node.op == "call_function")
        name = add_tensor(graph_module, "surgery_ids", self.back.to(inputs[0].meta["val"].device), parameter=False)
        for node in inputs:
            with graph.inserting_before(first):
                taken = graph.call_function(aten.take.default, (graph.get_attr(name), node))
            node.replace_all_uses_with(taken, delete_user_cb=lambda user, own=taken: user is not own)

    def _pick(self, graph_module: GraphModule) -> None:
        graph = graph_module.graph
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        ends = [node for node in _nodes(graph_module, self.vocabulary.scores) if output in node.users]
        for node in ends:
            index = self.keep.to(node.meta["val"].device)
            name = add_tensor(graph_module, "surgery_kept", index, parameter=False)
            with graph.inserting_before(output):
                picked = graph.call_function(aten.index_select.default, (node, -1, graph.get_attr(name)))
            output.replace_input_with(node, picked)


class _Ids(dict):
    def __missing__(self, number: int) -> int:
        return number


def take(graph_module: GraphModule, lookups: list[Node], name: str, table: Tensor) -> None:
    """Let every look-up read `table[ids]` for its ids."""
    graph = graph_module.graph
    device = lookups[0].args[1].meta["val"].device
    name = add_tensor(graph_module, name, table.to(device), parameter=False)
    for node in lookups:
        with graph.inserting_before(node):
            ids = graph.call_function(aten.to.dtype, (node.args[1], torch.int64))
            taken = graph.call_function(aten.take.default, (graph.get_attr(name), ids))
        node.args = (node.args[0], taken, *node.args[2:])


def _nodes(graph_module: GraphModule, wanted: tuple[Node, ...]) -> list[Node]:
    """The same nodes in another copy of their graph, by name."""
    found = {node.name: node for node in graph_module.graph.nodes}
    return [found[node.name] for node in wanted if node.name in found]
