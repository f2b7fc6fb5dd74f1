"""A graph that was saved becomes a captured one again: shapes are propagated, marks and owners stay."""

from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg

from surgery.anatomy.graphs import attribute

SAVED = "value"
"""The meta key under which a loaded bundle keeps a node's dtype and shape, free sizes as text."""


def is_saved(model: torch.nn.Module) -> bool:
    """Whether a module is a graph read from a bundle."""
    return isinstance(model, GraphModule) and any(
        node.op == "placeholder" and SAVED in node.meta and "val" not in node.meta for node in model.graph.nodes
    )


def adopt(graph_module: GraphModule, inputs: dict[str, Any]) -> GraphModule:
    """Give every node of a loaded graph the fake value that capture would have recorded; edits only meta.

    `inputs` are example tensors by placeholder name.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = _input(node, inputs[node.name], mode)
        elif node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(attribute(graph_module, node.target), static_shapes=True)
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
            with mode, enable_python_dispatcher(), torch.no_grad():
                node.meta["val"] = node.target(*args, **kwargs)
    graph_module.meta["captured"] = True
    return graph_module


def _input(node: Node, example: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(example, torch.Tensor):
        return example
    saved = node.meta[SAVED].shape
    free = [DimDynamic.DYNAMIC if isinstance(size, str) else DimDynamic.STATIC for size in saved]
    context = StatelessSymbolicContext(dynamic_sizes=free)
    return mode.from_tensor(example, symbolic_context=context, source=ConstantSource(node.name))
