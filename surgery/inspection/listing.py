"""A graph read once for printing: what is shown, where it belongs, what it is called."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.inspection.blocks import Blocks, blocks
from surgery.inspection.expression import Expressions
from surgery.inspection.names import node_names, tuple_parts
from surgery.inspection.owners import Headings, class_names, inside, owners
from surgery.inspection.tensors import tensors
from surgery.inspection.values import GraphValues, shape_text
from surgery.inspection.visible import Visible, visible
from surgery.passes.provenance import Provenance, provenance


@dataclass(frozen=True)
class Statement:
    """One line of a listing. `names` is empty for a node whose parts are named instead."""

    node: Node
    names: tuple[str, ...]
    text: str
    heading: str
    value: str
    marks: tuple[Provenance, ...]
    weights: tuple[str, ...]


class Listing:
    """The visible part of a graph with names, owners and shapes; built once, read by every printer."""

    def __init__(self, graph_module: GraphModule):
        self.module = graph_module
        self.values = GraphValues(graph_module.graph)
        self.seen: Visible = visible(graph_module.graph, self.values)
        self.owner = owners(graph_module.graph)
        self.classes = class_names(graph_module.graph)
        self.blocks: Blocks = blocks(self.owner[node] for node in self.seen.nodes)
        self.names = node_names(self.seen, self.owner, self.blocks)
        self.headings = Headings(self.seen.nodes, self.owner)
        self.expressions = Expressions(self.name_of, self.values)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return tensors(self.module)

    @cached_property
    def inputs(self) -> list[Node]:
        return [node for node in self.seen.nodes if node.op == "placeholder"]

    @cached_property
    def statements(self) -> list[Statement]:
        """A line for every operation, in the order they run."""
        unpacked = {node: parts for node in self.seen.nodes if (parts := self._parts(node))}
        hidden = {part for parts in unpacked.values() for part in parts}
        shown = (node for node in self.seen.nodes if node.op != "placeholder" and node not in hidden)
        return [self._statement(node, unpacked.get(node, [])) for node in shown if node not in self.seen.inlined]

    @cached_property
    def output(self) -> Node:
        return next(node for node in self.module.graph.nodes if node.op == "output")

    def name_of(self, node: Node, heading: str = "") -> str:
        """How a node is called where it is read; a weight of the heading's module begins with a dot."""
        node = self.seen.resolve(node)
        if node in self.seen.inlined:
            return self.expressions.write(node, heading)
        if node.op != "get_attr":
            return self.names.get(node, node.name)
        path = str(node.target)
        return path[len(heading) :] if heading and inside(path, heading) else path

    def marks(self, node: Node) -> tuple[Provenance, ...]:
        """The clauses behind a node and behind the weights it reads, each once."""
        weights = [source for source in node.all_input_nodes if source.op == "get_attr"]
        return tuple(dict.fromkeys(mark for each in (node, *weights) for mark in provenance(each)))

    def _parts(self, node: Node) -> list[Node]:
        """The getitems that unpack a tuple, when nothing else reads it."""
        parts = tuple_parts(node, node.users)
        alike = {provenance(part) for part in parts} == {provenance(node)}
        return parts if parts and len(parts) == len(node.users) and alike else []

    def _statement(self, node: Node, parts: list[Node]) -> Statement:
        heading = self.headings.of(self.owner[node])
        marks = self.marks(node)
        return Statement(
            node,
            self._targets(node, parts),
            self.expressions.write(node, heading),
            heading,
            self.values.text(node),
            marks,
            self._weight_shapes(node) if marks else (),
        )

    def _targets(self, node: Node, parts: list[Node]) -> tuple[str, ...]:
        if not parts:
            return (self.names[node],)
        by_index = {part.args[1]: self.names.get(part, "_") for part in parts}
        value = self.values.of(node)
        count = len(value) if isinstance(value, tuple) else max(by_index) + 1
        return tuple(by_index.get(index, "_") for index in range(count))

    def _weight_shapes(self, node: Node) -> tuple[str, ...]:
        """Shapes of the tensors a touched node reads: there a cut shows."""
        found = (self.tensors.get(str(source.target)) for source in node.all_input_nodes if source.op == "get_attr")
        return tuple(
            shape_text(tensor.shape) for tensor in found if isinstance(tensor, torch.Tensor) and tensor.dim() > 1
        )
