"""Run a captured graph with less Python between its operators; the operators and their results stay the same.

A graph as torch.fx runs it calls every ATen operator through the slow, boxed door and looks every tensor up along its
dotted path, each time. For a small batch that costs a third of a forward pass. Here the same operators are called
through torch's own functions, and tensors are read from where their modules keep them.
"""

import functools
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
nn = torch._C._nn

DOORS = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.rsqrt.default: torch.rsqrt,
    aten.mean.dim: torch.mean,
    aten.exp.default: torch.exp,
    aten.sin.default: torch.sin,
    aten.cos.default: torch.cos,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.relu.default: torch.relu,
    aten.silu.default: nn.silu,
    aten.gelu.default: nn.gelu,
    aten.linear.default: nn.linear,
    aten.matmul.default: torch.matmul,
    aten.bmm.default: torch.bmm,
    aten.addmm.default: torch.addmm,
    aten.conv2d.default: torch.conv2d,
    aten.layer_norm.default: torch.layer_norm,
    aten.softmax.int: torch.softmax,
    aten.scaled_dot_product_attention.default: nn.scaled_dot_product_attention,
    aten.cat.default: torch.cat,
    aten.stack.default: torch.stack,
    aten.chunk.default: torch.chunk,
    aten.unbind.int: torch.unbind,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten.reshape.default: torch.reshape,
    aten.flatten.using_ints: torch.flatten,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
}
"""The same operator through torch's own binding, with the same positional and keyword arguments."""
SEVERAL = {aten.chunk.default, aten.unbind.int}
"""Operators whose binding returns a tuple where the overload returns a list."""
QUICK = "_quick"


def quicken(graph_module: GraphModule) -> GraphModule:
    """Let a graph run faster in eager mode, in place; returns it. Its `graph` and tensors are what they were.

    Results are bit-identical. Under torch.compile or torch.export the graph runs as it was. An option that capture made
    a constant, such as use_cache=False, need not be given. What runs is made at the first call. `recompile()` undoes
    this; quicken again after editing the graph.
    """
    graph_module.__dict__.pop(QUICK, None)
    kind = type(graph_module)
    plain, options = kind.forward, _options(graph_module)

    @functools.wraps(plain)
    def forward(self: GraphModule, *args: Any, **kwargs: Any) -> Any:
        for place, name, held in options:
            if place >= len(args):
                kwargs.setdefault(name, held)
        if torch.compiler.is_compiling():
            return plain(self, *args, **kwargs)
        made = self.__dict__.get(QUICK)
        if made is None:
            made = self.__dict__[QUICK] = _quick(self)
        return type(made).forward(made, *args, **kwargs)

    kind.forward = forward
    return graph_module


def _quick(graph_module: GraphModule) -> GraphModule:
    slots: list[tuple[dict, str]] = []
    return GraphModule(_Root(slots), _quick_graph(graph_module, slots), class_name="Quick")


def _options(graph_module: GraphModule) -> list[tuple[int, str, Any]]:
    """Place, name and value of arguments that capture made constants: nothing reads them. A loaded graph has forgotten
    their values."""
    info = getattr(graph_module.graph._codegen, "pytree_info", None)
    names = [name for name in info.orig_args if name != "self"] if info else []
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder" and not node.users]
    held = {str(node.target): node.meta.get("val") for node in inputs if "value" not in node.meta}
    plain = (bool, int, float, str, type(None))
    return [(place, name, held[name]) for place, name in enumerate(names) if isinstance(held.get(name, ...), plain)]


class _Root(torch.nn.Module):
    """What the quick graph reads: the modules' own dictionaries, so that a tensor moved or replaced is seen."""

    def __init__(self, slots: list[tuple[dict, str]]):
        super().__init__()
        self.slots = slots


def read(slots: list[tuple[dict, str]]) -> list[torch.Tensor]:
    """The tensors as they are now."""
    return [shelf[name] for shelf, name in slots]


def _quick_graph(graph_module: GraphModule, slots: list[tuple[dict, str]]) -> Graph:
    graph = Graph()
    made: dict[Node, Node] = {}
    tensors: Node | None = None
    for node in graph_module.graph.nodes:
        if node.op != "placeholder" and tensors is None:
            tensors = graph.call_function(read, (graph.get_attr("slots"),))
        if node.op == "get_attr":
            made[node] = graph.call_function(operator.getitem, (tensors, len(slots)))
            slots.append(_slot(graph_module, node.target))
        elif node.op == "output":
            graph.output(torch.fx.node.map_arg(node.args[0], made.__getitem__))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].target = _door(node)
            made[node].meta = {}
    graph._codegen = graph_module.graph._codegen
    return graph


def _door(node: Node) -> Any:
    if node.op != "call_function" or node.target not in DOORS:
        return node.target
    if node.target in SEVERAL and any(user.target is not operator.getitem for user in node.users):
        return node.target
    return DOORS[node.target]


def _slot(graph_module: GraphModule, name: str) -> tuple[dict, str]:
    """The dictionary that holds a tensor, and its key in it."""
    *path, leaf = name.split(".")
    owner: Any = graph_module
    for part in path:
        owner = getattr(owner, part)
    shelf = next((shelf for shelf in (owner._parameters, owner._buffers) if leaf in shelf), owner.__dict__)
    return shelf, leaf
