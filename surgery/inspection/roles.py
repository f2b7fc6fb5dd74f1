"""What a node is for, where its use shows it: q, k, v and mask of attention; shift, scale and gate of a modulation."""

from torch.fx import Node

from surgery.inspection.ops import op_name
from surgery.inspection.visible import Visible

ATTENTION = ("q", "k", "v", "mask")


def roles(seen: Visible) -> dict[Node, str]:
    """The nodes whose use names them."""
    found: dict[Node, str] = {}
    for node in seen.nodes:
        if node.op != "call_function":
            continue
        name = op_name(node.target)
        if name == "sdpa":
            _attention(node, seen, found)
        elif name in ("chunk", "split", "unbind"):
            _modulation(node, found)
    return found


def _attention(node: Node, seen: Visible, found: dict[Node, str]) -> None:
    for role, source in zip(ATTENTION, node.args, strict=False):
        if isinstance(source, Node):
            found.setdefault(seen.resolve(source), role)


def _modulation(node: Node, found: dict[Node, str]) -> None:
    """Parts of which one is used as `1 + part` are those of an adaptive norm: x * (1 + scale) + shift, gate * x."""
    parts = {part: _use(part) for part in node.users if op_name(part.target) == "getitem"}
    if "scale" in parts.values():
        found.update({part: use for part, use in parts.items() if use})


def _use(part: Node) -> str:
    """How the first reader uses a part, looking through added axes."""
    user = next(iter(part.users), None)
    while user is not None and op_name(user.target) in ("unsqueeze", "slice", "select"):
        user = next(iter(user.users), None)
    name = op_name(user.target) if user is not None and user.op == "call_function" else ""
    if name == "add":
        return "scale" if 1 in user.args else "shift"
    return "gate" if name == "mul" else ""
