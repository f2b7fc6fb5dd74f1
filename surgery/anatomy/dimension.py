"""One width of a model, everywhere it appears.

A feature axis of size D is shared by all nodes that elementwise operations connect. It begins at producers (a
linear's rows, an embedding's columns, a parameter's last axis) and ends at consumers (a linear's columns). Cutting
the axis means cutting all of them alike; anything else that touches it is an obstacle, and the axis cannot be cut.
"""

from dataclasses import dataclass

from torch.fx import Node

from surgery.anatomy.graphs import ACTIVATIONS, aten, is_op, shape, tensor_inputs, value, weight_of, width

ELEMENTWISE = ACTIVATIONS | {
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.neg.default,
    aten.abs.default,
    aten.pow.Tensor_Scalar,
    aten.exp.default,
    aten.square.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.clamp.default,
    aten.where.self,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.masked_fill.Scalar,
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.add_.Tensor,
    aten.mul_.Tensor,
    aten.silu_.default,
    aten.relu_.default,
    aten.lift_fresh_copy.default,
}
RESHAPES = {
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.slice.Tensor,
    aten.flatten.using_ints,
    aten.repeat.default,
    aten.select.int,
    aten.index_select.default,
}
"""Operations that may keep the last axis whole; whether one does is read off its shapes and arguments."""


@dataclass(frozen=True)
class Obstacle:
    """Where an axis cannot be cut: the node and the reason."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Dimension:
    """All places of one feature axis, each in graph order.

    `width` D; `nodes` carry it last; `producers` make it (linear, embedding, or a parameter read by get_attr);
    `consumers` are linears that sum it away; `obstacles` forbid a cut.
    """

    width: int
    nodes: tuple[Node, ...]
    producers: tuple[Node, ...]
    consumers: tuple[Node, ...]
    obstacles: tuple[Obstacle, ...]


def trace_dimension(start: Node) -> Dimension:
    """The whole feature axis that `start` carries last, found forwards and backwards from it."""
    size = width(start)
    seen: dict[Node, None] = {}
    producers: dict[Node, None] = {}
    consumers: dict[Node, None] = {}
    obstacles: dict[Node, Obstacle] = {}
    todo = [start]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen[node] = None
        if is_producer(node):
            producers[node] = None
        elif passes_axis(node):
            todo.extend(source for source in tensor_inputs(node) if _carries(source, size, node))
        else:
            obstacles[node] = Obstacle(node, f"{describe(node)} makes it")
        for user in node.users:
            if passes_axis(user) and _keeps_axis(node, user):
                todo.append(user)
            elif is_op(user, aten.linear) and user.args[0] is node:
                consumers[user] = None
            elif not is_size_read(user):
                obstacles[user] = Obstacle(user, f"{describe(user)} reads it")
    found = (tuple(node for node in start.graph.nodes if node in group) for group in (seen, producers, consumers))
    return Dimension(size, *found, tuple(obstacles[node] for node in start.graph.nodes if node in obstacles))


def is_producer(node: Node) -> bool:
    """Whether a node makes a feature axis out of weights that can be cut."""
    if is_op(node, aten.linear, aten.embedding):
        return weight_of(node) is not None
    return node.op == "get_attr"


def passes_axis(node: Node) -> bool:
    """Whether an operation works feature by feature, so that its last axis is that of its input."""
    if node.op != "call_function":
        return False
    if node.target in ELEMENTWISE:
        return True
    return node.target in RESHAPES and any(_keeps_axis(source, node) for source in tensor_inputs(node))


def is_size_read(node: Node) -> bool:
    """Reading a size is no use of the values."""
    return is_op(node, aten.sym_size) or not node.users and node.op != "output"


def describe(node: Node) -> str:
    """An operation as a person calls it: `layer_norm`, `input x`, `output`."""
    if node.op == "placeholder":
        return f"input `{node.target}`"
    if node.op == "output":
        return "the model's output"
    packet = getattr(node.target, "overloadpacket", node.target)
    return f"`{getattr(packet, '__name__', packet)}`"


def _carries(source: Node, size: int, user: Node) -> bool:
    """Whether an operand holds the axis rather than being broadcast along it."""
    sizes = shape(source)
    return bool(sizes) and sizes[-1] == size and _keeps_axis(source, user)


def _keeps_axis(source: Node, user: Node) -> bool:
    if user.target in ELEMENTWISE:
        return width(source) == width(user) and width(source) is not None
    before, after = shape(source), shape(user)
    if not before or not after or before[-1] != after[-1] or not isinstance(before[-1], int):
        return False
    last = len(before) - 1
    if is_op(user, aten.unsqueeze):
        return user.args[1] % (len(before) + 1) != len(before)
    if is_op(user, aten.slice, aten.select, aten.index_select, aten.squeeze) and len(user.args) > 1:
        return isinstance(user.args[1], int) and user.args[1] % len(before) != last
    if is_op(user, aten.repeat):
        return user.args[1][-1] == 1
    return isinstance(value(user).shape[-1], int)
