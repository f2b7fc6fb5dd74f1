"""Which nodes a reader needs to see: not the dead ones, not the checks of an exporter, not what changes nothing."""

from dataclasses import dataclass

from torch._ops import OpOverload
from torch.fx import Graph, Node

from surgery.bundle.value import Value
from surgery.inspection.ops import UNIT, op_name
from surgery.inspection.values import GraphValues
from surgery.passes.provenance import provenance

ALWAYS_SAME = frozenset(["contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh"])
SAME_IF_UNCHANGED = frozenset(
    ["to", "expand", "view", "reshape", "slice", "dropout", "feature_dropout", "type_as", "clone"]
)


@dataclass(frozen=True)
class Visible:
    """`nodes` in graph order, without get_attr and output; `stands_for` maps a hidden node to the one it repeats.

    `inlined` nodes have no line of their own: an axis added for a single reader is written where it is read.
    """

    nodes: tuple[Node, ...]
    stands_for: dict[Node, Node]
    inlined: frozenset[Node]

    def resolve(self, node: Node) -> Node:
        while node in self.stands_for:
            node = self.stands_for[node]
        return node


def visible(graph: Graph, values: GraphValues) -> Visible:
    """Split a graph's nodes into those worth a line and those that are not. A touched node is always shown."""
    alive = _alive(graph)
    stands_for = {node: node.args[0] for node in alive if not provenance(node) and _same(node, values)}
    shown = tuple(
        node
        for node in graph.nodes
        if node in alive
        and node not in stands_for
        and node.op not in ("get_attr", "output")
        and not _is_size(node, values)
    )
    return Visible(shown, stands_for, frozenset(node for node in shown if _is_inlined(node)))


def _is_inlined(node: Node) -> bool:
    return op_name(node.target) == "unsqueeze" and len(node.users) == 1 and not provenance(node)


def _alive(graph: Graph) -> set[Node]:
    """Nodes the output needs, inputs, what writes in place, and whatever a pass touched."""
    alive: set[Node] = set()
    for node in reversed(graph.nodes):
        wanted = node.op in ("output", "placeholder") or _writes(node) or bool(provenance(node))
        if wanted or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_size(node: Node, values: GraphValues) -> bool:
    """Arithmetic on sizes is written where it is used."""
    return bool(values.size(node)) and not provenance(node)


def _same(node: Node, values: GraphValues) -> bool:
    """Whether the node returns its first argument unchanged."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    name = op_name(node.target)
    if name in ALWAYS_SAME:
        return True
    if name in UNIT:
        return (
            len(node.args) == 2
            and _is_number(node.args[1], UNIT[name])
            and _unchanged(values.of(node.args[0]), values.of(node))
        )
    return name in SAME_IF_UNCHANGED and _unchanged(values.of(node.args[0]), values.of(node)) and not _drops(name, node)


def _is_number(value: object, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number


def _drops(name: str, node: Node) -> bool:
    """Dropout at work changes values and keeps the shape."""
    return "dropout" in name and not (len(node.args) > 2 and node.args[2] is False)


def _unchanged(before: object, after: object) -> bool:
    return isinstance(before, Value) and before == after
