"""Feed-forward layers: linear → activation [× gate] → linear."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import (
    aten,
    bends,
    common_path,
    input_of,
    is_layer,
    is_op,
    is_pointwise,
    owner,
    reads,
    shape,
    tensor_inputs,
    width,
)
from surgery.anatomy.site import Site
from surgery.anatomy.units.producers import CONVOLUTIONS

CARRY = (
    aten.dropout,
    aten.clone,
    aten.detach,
    aten.detach_,
    aten.lift_fresh_copy,
    aten.to,
    aten.contiguous,
    aten.glu,
    aten.chunk,
    aten.split,
    aten.split_with_sizes,
    aten.slice,
    aten.select,
    aten.unbind,
    aten.view,
    aten.reshape,
)
TURNED = (aten.transpose, aten.permute, aten.flatten, aten.unflatten)
"""With a convolution that keeps channels apart between them: tokens laid out as an image and back."""
STEPS = 16
"""So many operations may lie between an activation and the layer that reads it."""


@dataclass(frozen=True)
class Mlp(Site):
    """`width` hidden channels; `gated` when a second branch multiplies the activated one (GLU).

    `channels` [.., width] is what `down` reads of them, alone or joined with others.
    """

    width: int = 0
    gated: bool = False
    up: tuple[Node, ...] = field(default=(), repr=False, compare=False)
    down: Node | None = field(default=None, repr=False, compare=False)
    channels: Node | None = field(default=None, repr=False, compare=False)

    @property
    def linears(self) -> tuple[Node, ...]:
        return (*self.up, self.down)

    @property
    def changes_width(self) -> bool:
        """Whether it gives another width than it takes, as no layer of a residual stream does."""
        return width(input_of(self.up[0])) != width(self.down)

    def describe(self) -> str:
        return f"{self.width} channels{', gated' if self.gated else ''}"


def find_mlps(graph_module: GraphModule) -> Iterator[Mlp]:
    """Every feed-forward layer whose hidden channels are used by one linear alone."""
    seen: set[Node] = set()
    for node in graph_module.graph.nodes:
        if not (bends(node) or is_op(node, aten.glu)):
            continue
        down, channels = _down(node)
        if down is None or down in seen:
            continue
        up = _ups(channels)
        if not up or width(channels) is None:
            continue
        seen.add(down)
        gated = len(up) > 1 or width(up[0]) == 2 * width(channels)
        yield Mlp(
            kind="mlp",
            path=_path(up, down),
            nodes=(*up, down),
            width=width(channels),
            gated=gated,
            up=up,
            down=down,
            channels=channels,
        )


def _path(up: tuple[Node, ...], down: Node) -> str:
    return common_path([*(owner(linear) for linear in up), owner(down)])


def _down(activation: Node) -> tuple[Node | None, Node]:
    """The linear that reads the activated channels, through gates and dropout; and the channels it reads, which may be
    joined with others on the way (attention's, in a block that runs the two in parallel)."""
    current, channels = activation, None
    for _ in range(STEPS):
        users = [user for user in current.users if shape(user)]
        linear = next((user for user in users if reads(user, current)), None)
        if linear:
            return (linear if len(users) == 1 else None), channels or current
        if len(users) == 1 and is_op(users[0], aten.cat) and channels is None:
            channels = current
        elif not users or not all(_carries(user) for user in users):
            return None, current
        current = users[-1]
    return None, current


def _carries(node: Node) -> bool:
    """Whether a call hands channels on, each by itself."""
    if is_op(node, *CONVOLUTIONS):
        weight = shape(node.args[1]) or ()
        return len(node.args) > 6 and node.args[6] == weight[0] and weight[1] == 1
    return is_op(node, *CARRY, *TURNED) or node.op == "call_function" and is_pointwise(node)


def _ups(channels: Node) -> tuple[Node, ...]:
    """The linears whose outputs meet in the hidden channels; empty when something else does."""
    found, seen, todo = [], set(), [channels]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_layer(current):
            found.append(current)
        elif _carries(current) or getattr(current.target, "__name__", "") == "getitem":
            todo.extend(tensor_inputs(current) or current.all_input_nodes)
        elif current.op != "get_attr":
            return ()
    return tuple(sorted(found))  # nodes compare by their place in the graph
