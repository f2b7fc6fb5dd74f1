"""Shapes of a rewritten graph, recomputed where something changed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from surgery.anatomy.graphs import attribute


def refresh(graph_module: GraphModule, changed: Iterable[Node]) -> list[Node]:
    """Recompute `meta["val"]` of the changed nodes, and of what depends on them as far as shapes go on changing.

    Returns the nodes whose shape, dtype or layout is another. Raises what the operator raises when shapes no longer
    fit, with the node's name in a note.
    """
    mode = _fake_mode(graph_module)
    due, reshaped = set(changed), []
    for node in graph_module.graph.nodes:
        if node not in due or node.op in ("placeholder", "output"):
            continue
        before = _form(node.meta.get("val"))
        try:
            node.meta["val"] = _compute(graph_module, node, mode)
        except Exception as error:
            error.add_note(f"at node `{node.name}` of the rewritten graph")
            raise
        if _form(node.meta["val"]) != before:
            reshaped.append(node)
            due.update(node.users)
    return reshaped


def _fake_mode(graph_module: GraphModule) -> FakeTensorMode:
    for node in graph_module.graph.nodes:
        for leaf in tree_leaves(node.meta.get("val")):
            if isinstance(leaf, torch._subclasses.FakeTensor):
                return leaf.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _compute(graph_module: GraphModule, node: Node, mode: FakeTensorMode):
    if node.op == "get_attr":
        return mode.from_tensor(attribute(graph_module, node.target), static_shapes=True)
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    with mode, enable_python_dispatcher(), torch.no_grad():
        return node.target(*args, **kwargs)


def _form(fake: Any) -> list[str]:
    return [
        f"{tuple(leaf.shape)} {leaf.stride()} {leaf.dtype} {leaf.device}"
        if isinstance(leaf, torch.Tensor)
        else str(leaf)
        for leaf in tree_leaves(fake)
    ]
