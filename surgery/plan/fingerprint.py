"""Which model a plan was made for: its structure, without its weights."""

import hashlib
from types import FunctionType
from typing import Any

from torch.fx import GraphModule

from surgery.anatomy.graphs import aten, attribute

LAYOUT = (aten.contiguous.default, aten.clone.default)
"""What only lays memory out: whether a graph needs it depends on the device it was captured on."""


def tensors_of(graph_module: GraphModule) -> dict[str, str]:
    """Every tensor the graph reads: name to `dtype[shape]`."""
    names = sorted({node.target for node in graph_module.graph.nodes if node.op == "get_attr"})
    found = {name: attribute(graph_module, name) for name in names}
    return {name: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in found.items()}


def _named(target: Any) -> str:
    """A plain function's own text holds its address, which differs from process to process."""
    return f"{target.__module__}.{target.__qualname__}" if isinstance(target, FunctionType) else str(target)


def fingerprint(graph_module: GraphModule) -> str:
    """`sha256:…` over the operators in order and the tensors' names, shapes and dtypes.

    Example inputs' batch, the device, the layout in memory and node names do not enter.
    """
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target not in LAYOUT:
            digest.update(f"{_named(node.target)}\n".encode())
    for name, form in tensors_of(graph_module).items():
        digest.update(f"{name} {form}\n".encode())
    return f"sha256:{digest.hexdigest()}"
