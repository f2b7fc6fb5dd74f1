"""How large a model is, from shapes alone; works on meta tensors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule
from torch.nn import Parameter

from surgery.anatomy.graphs import attribute


@dataclass(frozen=True)
class Size:
    """Parameters, a tied one once, and bytes of parameters and buffers."""

    parameters: int
    bytes: int


def size_of(graph_module: GraphModule) -> Size:
    """Size of what the graph reads."""
    names = dict.fromkeys(node.target for node in graph_module.graph.nodes if node.op == "get_attr")
    read = list(distinct(attribute(graph_module, name) for name in names))
    parameters = sum(tensor.numel() for tensor in read if isinstance(tensor, Parameter))
    return Size(parameters, sum(tensor.numel() * tensor.element_size() for tensor in read))


def distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each piece of memory once: tensors with the same storage, offset and entries are tied."""
    seen = set()
    for tensor in tensors:
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel())
        if key not in seen:
            seen.add(key)
            yield tensor
