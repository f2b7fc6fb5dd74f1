"""Reading a captured graph: shapes, owners, weights, ancestors. Nothing here edits."""

import operator
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

aten = torch.ops.aten
STACK_LINE = re.compile(r'File "([^"]+)", line (\d+)')

ACTIVATIONS = {
    aten.silu.default,
    aten.gelu.default,
    aten.relu.default,
    aten.relu6.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.hardswish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.selu.default,
    aten.celu.default,
    aten.hardtanh.default,
    aten.hardsigmoid.default,
    aten.log_sigmoid.default,
    aten.threshold.default,
    aten.prelu.default,
    aten.erf.default,
}
"""Nonlinearities; a hand-written one (x · sigmoid(x), x · (1 + erf(x))) is found through what is bent in it."""
UNTAGGED = {aten.floor_divide, aten.hardswish, aten.log_sigmoid, aten.masked_fill, aten.masked_fill_, aten.prelu}
UNTAGGED |= {aten.where}
"""Operators that work element by element and that torch does not say so of."""
LENT = {aten.dropout, aten.alpha_dropout, aten.feature_dropout, aten.type_as, aten.broadcast_tensors}
"""Operators that may return what they are given, which their schemas do not tell."""
STRAIGHT = {aten.add, aten.sub, aten.rsub, aten.neg, aten.mul, aten.div}
"""Those that bend nothing."""


PARTS = (aten.split, aten.split_with_sizes, aten.chunk, aten.slice, aten.narrow)


def is_op(node: Any, *operators: Any) -> bool:
    """Whether `node` calls one of these overloads or overload packets (`aten.linear`)."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    return node.target in operators or getattr(node.target, "overloadpacket", None) in operators


def is_pointwise(node: Node) -> bool:
    """Whether a call works element by element, operands of one size aside."""
    return is_pointwise_operator(node.target)


@cache
def is_pointwise_operator(target: Any) -> bool:
    """Whether an operator works element by element."""
    return getattr(target, "overloadpacket", None) in UNTAGGED or torch.Tag.pointwise in getattr(target, "tags", ())


def bends(node: Node) -> bool:
    """Whether a call is a nonlinear function of a floating tensor, element by element."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    if node.target in ACTIVATIONS:
        return True
    straight = node.target.overloadpacket in STRAIGHT or not is_pointwise(node)
    return not straight and any(value(each).is_floating_point() for each in tensor_inputs(node))


def writes(node: Node) -> bool:
    """Whether a call writes into what it is given."""
    return node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def aliases(node: Node) -> bool:
    """Whether what a call returns is, or may be, memory of its first tensor; a part of a list is the list's."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return writes(node) or is_op(node, *LENT) or any(made.alias_info is not None for made in schema.returns)


def value(node: Node) -> Any:
    """The fake value capture recorded: a tensor, a symbolic int or a list of them."""
    return node.meta.get("val")


def shape(node: Node) -> tuple | None:
    """The shape of a tensor-valued node, symbolic sizes included; None for anything else."""
    fake = value(node)
    return tuple(map(known_size, fake.shape)) if isinstance(fake, torch.Tensor) else None


def known_size(size: int | torch.SymInt) -> int | torch.SymInt:
    """A symbolic size that can only be one number is that number."""
    number = size if isinstance(size, int) else size.node.maybe_as_int()
    return size if number is None else number


def folded(size: int | torch.SymInt) -> int | None:
    """8 of a free axis `8·batch`; None of a plain number."""
    return int(size.node.expr.as_coeff_Mul()[0]) if isinstance(size, torch.SymInt) else None


def written(node: Node) -> tuple[str, ...] | None:
    """The shape as text, to be compared: `==` of two free sizes would make them one for good wherever they happen to be
    equal in the example inputs."""
    sizes = shape(node)
    return None if sizes is None else tuple(map(str, sizes))


def width(node: Node) -> int | None:
    """The size of the last axis where it is a plain number."""
    sizes = shape(node)
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else None


def owner(node: Node) -> str:
    """The dotted path of the module whose forward made the node; "" at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def attribute(graph_module: GraphModule, name: str) -> torch.Tensor:
    """A parameter, buffer or constant by its dotted name."""
    found: Any = graph_module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def stored(node: Node) -> torch.Tensor | None:
    """The value of a constant of the graph, plain or copied; None for anything else and for one without a value."""
    while is_op(node, aten.lift_fresh_copy, aten.clone, aten.detach, aten.alias):
        node = node.args[0]
    held = attribute(node.graph.owning_module, node.target) if node.op == "get_attr" else None
    return None if held is None or held.is_meta else held


def weight_of(node: Node) -> Node | None:
    """The `get_attr` node of a layer's or an embedding's weight; None when it is computed."""
    weight = node.args[0 if is_op(node, aten.embedding) else 2 if is_op(node, aten.addmm) else 1]
    return weight if isinstance(weight, Node) and weight.op == "get_attr" else None


def whole_of(part: Any) -> Any:
    """The tensor that `part` was split or sliced out of; itself where it was not."""
    while is_op(part, *PARTS) or getattr(getattr(part, "target", None), "__name__", "") == "getitem":
        part = part.args[0]
    return part


def is_layer(node: Any) -> bool:
    """Whether a node is a linear layer: `aten.linear`, or `addmm` and `x @ W` with a stored matrix W [K, M]."""
    if is_op(node, aten.linear):
        return True
    weight = weight_of(node) if is_op(node, aten.addmm, aten.matmul, aten.mm) else None
    return weight is not None and len(shape(weight) or ()) == 2


def input_of(layer: Node) -> Node:
    """What a linear layer multiplies."""
    return layer.args[1 if is_op(layer, aten.addmm) else 0]


def reads(layer: Node, source: Node) -> bool:
    """Whether a node is a linear layer and `source` what it multiplies."""
    return is_layer(layer) and input_of(layer) is source


def bias_of(linear: Node) -> Node | None:
    """The `get_attr` node of a linear's bias, if it has one."""
    bias = linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")
    return bias if isinstance(bias, Node) and bias.op == "get_attr" else None


def ancestors(nodes: Iterable[Node], stop: Iterable[Node] = ()) -> set[Node]:
    """The nodes and all they are computed from, not looking past `stop`."""
    halt, seen, todo = set(stop), set(), list(nodes)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in halt:
            todo.extend(node.all_input_nodes)
    return seen


def tensor_inputs(node: Node) -> list[Node]:
    """The inputs of a node that are tensors (no sizes, no getitem'd scalars)."""
    return [source for source in node.all_input_nodes if isinstance(value(source), torch.Tensor)]


def tensor_ancestors(node: Node) -> set[Node]:
    """Ancestors through tensors alone: reading a tensor's size does not make it an ancestor."""
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        todo.extend(tensor_inputs(current) if not _is_container(current) else current.all_input_nodes)
    return seen


def _is_container(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def placeholders(graph_module: GraphModule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def calls(graph_module: GraphModule, *operators: Any) -> Iterator[Node]:
    """Every call of these operators, in graph order."""
    return (node for node in graph_module.graph.nodes if is_op(node, *operators))


def where(node: Node) -> str:
    """Where a node is in the model, for a message: its module, or its line of code, or its name."""
    if owner(node):
        return f"`{owner(node)}`"
    lines = STACK_LINE.findall(node.meta.get("stack_trace") or _stack(node))
    return f"line {lines[-1][1]} of {Path(lines[-1][0]).name}" if lines else f"node `{node.name}`"


def _stack(node: Node) -> str:
    module = node.graph.owning_module
    lines = module.meta.get("lines") if module is not None else None
    return lines.of(node.name) if lines else ""


def common_path(paths: Iterable[str]) -> str:
    """The longest dotted prefix shared by all paths."""
    split = [path.split(".") if path else [] for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
