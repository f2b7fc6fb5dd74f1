"""Values of a few nodes, computing nothing but what they need."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from surgery.anatomy.graphs import ancestors, attribute
from surgery.anatomy.placement import device_of


def evaluate(graph_module: GraphModule, wanted: Sequence[Node], given: Mapping[Node, Any]) -> list[Any]:
    """The values of `wanted` nodes when the `given` nodes (placeholders or inner nodes) have these values.

    Tensors given are put on the device of the graph's. Only the ancestors of `wanted`, up to `given`, are run; gradients
    flow as the caller has them set. Raises KeyError for a placeholder that is needed and not given.
    """
    needed = ancestors(wanted, stop=given)
    home = device_of(graph_module)
    values = {node: value.to(home) if isinstance(value, Tensor) else value for node, value in given.items()}
    for node in graph_module.graph.nodes:
        if node in needed and node not in values:
            values[node] = _run(graph_module, node, values)
    return [values[node] for node in wanted]


def _run(graph_module: GraphModule, node: Node, values: Mapping[Node, Any]) -> Any:
    if node.op == "get_attr":
        return attribute(graph_module, node.target)
    if node.op == "placeholder":
        raise KeyError(node.name)
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: values[source])
    return node.target(*args, **kwargs)
