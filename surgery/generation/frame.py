"""The graph of the frame: every tensor that the stream is handed, at the greatest length."""

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.graphs import ancestors, aten, is_op, placeholders
from surgery.generation.faults import unfit
from surgery.generation.parts import Parts
from surgery.generation.step import Step


def frame_of(parts: Parts, step: Step) -> tuple[GraphModule, tuple[str, ...]]:
    """A module of keyword inputs that returns what `step` is handed, and the names of its inputs.

    Of the tokens it reads the size alone.
    """
    outputs = [*(cut.node for cut in step.cuts), *step.sizes]
    wanted = ancestors(outputs, stop=parts.stream)
    wanted |= {node for node in parts.graph_module.graph.nodes if _edits(node) and node.args[0] in wanted}
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in parts.graph_module.graph.nodes:
        if node.op == "placeholder" and node in wanted:
            made[node] = graph.placeholder(str(node.target))
        elif is_op(node, aten.sym_size) and node in wanted:
            made[node] = _size(parts, graph, made, node)
        elif node in wanted and node not in parts.stream and node.op != "output":
            _refuse_stream(parts, node)
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta = {}
            if is_op(node, aten.embedding):
                with graph.inserting_before(made[node]):
                    table, index = made[node].args[:2]
                    made[node].args = (table, graph.call_function(within, (index, table)), *made[node].args[2:])
    graph.output(tuple(made[node] for node in outputs))
    names = tuple(str(node.target) for node in placeholders(parts.graph_module) if node in made)
    return GraphModule(parts.graph_module, graph, class_name="Frame"), names


def within(index: Tensor, table: Tensor) -> Tensor:
    """The same index. Raises IndexError, which a GPU would not, where a table of positions ends before it."""
    if index.numel() and int(index.max()) >= len(table):
        raise IndexError(f"its table of positions has {len(table)} rows")
    return index


def _edits(node: Node) -> bool:
    return bool(node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _refuse_stream(parts: Parts, node: Node) -> None:
    streamed = [source for source in node.all_input_nodes if source in parts.stream and source is not parts.tokens]
    if streamed:
        raise unfit(f"`{node.name}` takes its form from the tokens", node)


def _size(parts: Parts, graph: Graph, made: dict[Node, Node], node: Node) -> Node:
    """The size of a tensor; where that one is of the stream, of an input with the same size."""
    source, axis = node.args
    if source in made:
        return graph.call_function(node.target, (made[source], axis))
    size = parts.shape(source)[axis]
    for each, copied in made.items():
        if each.op == "placeholder" and size in parts.shape(each):
            return graph.call_function(node.target, (copied, parts.shape(each).index(size)))
    raise unfit(f"`{node.name}` is a size of the tokens alone", node)
