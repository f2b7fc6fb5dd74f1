"""A graph of one's own over the same tensors."""

from torch.fx import Graph, GraphModule


def copy_graph_module(graph_module: GraphModule, *, runs: bool = True) -> GraphModule:
    """A GraphModule whose graph and attributes can be replaced without touching the original.

    Tensors are shared, not copied; node names and meta are kept. Only attributes the graph reads come along. Without
    `runs` it cannot be called before its next `recompile()`: writing code takes as long as all the rest.
    """
    graph = Graph()
    mapping: dict = {}
    result = graph.graph_copy(graph_module.graph, mapping)
    output = next(node for node in reversed(graph_module.graph.nodes) if node.op == "output")
    graph.output(result).meta.update(output.meta)
    graph._codegen = graph_module.graph._codegen
    for old, new in mapping.items():
        new.meta = dict(old.meta)
    copied = GraphModule(graph_module, graph if runs else _reads(graph_module.graph), class_name="Model")
    if not runs:
        copied._graph, graph.owning_module = graph, copied
    copied.meta.update(graph_module.meta)
    return copied.train(graph_module.training)


def _reads(graph: Graph) -> Graph:
    """A graph that reads the same attributes and does nothing else."""
    reads = Graph()
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            reads.node_copy(node)
    reads.output(None)
    return reads
