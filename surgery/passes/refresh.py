"""Shapes of a rewritten graph, recomputed where something changed."""

from collections.abc import Hashable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from surgery.anatomy.graphs import attribute

OWN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What makes sizes of its own, each time others."""


def refresh(graph_module: GraphModule, changed: Iterable[Node]) -> list[Node]:
    """Recompute `meta["val"]` of the changed nodes, and of what depends on them as far as shapes go on changing.

    Returns the nodes whose shape, dtype or layout is another. Raises what the operator raises when shapes no longer
    fit, with the node's name in a note. Blocks that repeat are computed once.
    """
    mode = _fake_mode(graph_module)
    due, reshaped = set(changed), []
    known: dict[Hashable, Any] = {}
    for node in graph_module.graph.nodes:
        if node not in due or node.op in ("placeholder", "output"):
            continue
        before = _form(node.meta.get("val"))
        try:
            node.meta["val"] = _compute(graph_module, node, mode, known)
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


def _compute(graph_module: GraphModule, node: Node, mode: FakeTensorMode, known: dict[Hashable, Any]) -> Any:
    """The value of a node; one that the same call had on operands of the same form, where there was one."""
    if node.op == "get_attr":
        tensor = attribute(graph_module, node.target)
        key = _form(tensor)
        if key not in known:
            known[key] = mode.from_tensor(tensor, static_shapes=True)
        return known[key]
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    key = (node.target, _form(args), _form(tuple(kwargs.items())))
    if key in known:
        return known[key]
    unfixed = mode.shape_env.suppress_guards() if mode.shape_env is not None else nullcontext()
    with mode, enable_python_dispatcher(), torch.no_grad(), unfixed:
        found = node.target(*args, **kwargs)
    if not OWN.intersection(getattr(node.target, "tags", ())):
        known[key] = found
    return found


def _form(held: Any) -> Hashable:
    """All that tells two values of a node apart, but for what a tensor holds. Free sizes by how they are written."""
    if isinstance(held, Tensor):
        sizes = (*held.shape, *held.stride(), held.storage_offset())
        return (*map(_size, sizes), len(held.shape), held.dtype, held.device, held.layout, type(held))
    if isinstance(held, list | tuple):
        return tuple(map(_form, held))
    return _size(held) if isinstance(held, torch.SymInt) else (type(held), str(held))


def _size(size: int | torch.SymInt) -> Hashable:
    return size if isinstance(size, int) else size.node.expr
