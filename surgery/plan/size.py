"""How large a captured model is, from shapes alone."""

from dataclasses import dataclass

from torch.fx import GraphModule
from torch.nn import Parameter

from surgery.anatomy.graphs import attribute


@dataclass(frozen=True)
class Size:
    """Parameters counted once when tied, and their bytes; buffers are not parameters."""

    parameters: int
    bytes: int


def size_of(graph_module: GraphModule) -> Size:
    """Size of what the graph reads; works on meta tensors."""
    unique = {id(tensor): tensor for tensor in parameters_read(graph_module).values()}.values()
    return Size(sum(t.numel() for t in unique), sum(t.numel() * t.element_size() for t in unique))


def parameters_read(graph_module: GraphModule) -> dict[str, Parameter]:
    """The parameters the graph reads, by name."""
    names = dict.fromkeys(node.target for node in graph_module.graph.nodes if node.op == "get_attr")
    read = {name: attribute(graph_module, name) for name in names}
    return {name: tensor for name, tensor in read.items() if isinstance(tensor, Parameter)}
