"""The residual stream through a block: where it enters, where it leaves, and what could go between the two.

A layer reads the stream and adds to it. It can be removed, its output replaced by its input, where the two are one
stream (joined by additions and norms alone, of one shape and dtype) and where nothing but the stream comes out of it.
What else a block holds and others read, such as a position bias that all layers share, is not the layer's and stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from surgery.anatomy.dimension import ELEMENTWISE, Obstacle, describe, is_size_read
from surgery.anatomy.graphs import aliases, aten, is_op, tensor_inputs, value, where, width, writes, written
from surgery.anatomy.site import Site
from surgery.anatomy.sites.block import called

ADDS = (aten.add, aten.add_, aten.sub)
NORMS = (aten.layer_norm, aten.rms_norm, aten.native_layer_norm, aten._fused_rms_norm)
RESHAPES = (aten.view, aten.reshape, aten._unsafe_view, aten.clone, aten.contiguous)
SAME = (aten.dropout, aten.clone, aten.contiguous, aten.alias, aten.to)
BETWEEN = 6
"""How many operations may stand between the last of a block's own and the addition that closes it."""


@dataclass(frozen=True, eq=False)
class Layer:
    """`entry` and `exit` are the stream before and behind the block; `inside` all nodes between them and those that the
    block's code made; `adds` the additions from one to the other, each with the operand that is not the stream, or
    empty where norms stand in between as well."""

    site: Site
    entry: Node
    exit: Node
    inside: frozenset[Node]
    adds: tuple[tuple[Node, Node], ...]


def removable(graph_module: GraphModule, block: Site) -> Layer | Obstacle:
    """The removable layer that a block is, or the place and the reason why it is none."""
    inside = made_by(graph_module.graph, block.path)
    inside = _closed(graph_module.graph, inside)
    outs = _outs(inside)
    if not outs:
        return Obstacle(next(iter(inside)), "nothing reads it")
    joined = {out: sources for out in outs if (sources := _sources(out, inside))}
    if not joined:
        return Obstacle(outs[0], _why_apart(outs[0], inside))
    if len(joined) > 1:
        return _leak(list(joined)[-1], inside)
    (exit, entries), = joined.items()
    if len(entries) > 1:
        names = " and ".join(map(where, entries))
        return Obstacle(exit, f"two streams enter it, from {names}")
    (entry,) = entries
    leaks = [out for out in outs if out is not exit and _reaches(out, entry, inside)]
    if leaks:
        return _leak(leaks[0], inside)
    return Layer(block, entry, exit, inside, _adds(exit, entry, inside))


def made_by(graph: Graph, path: str) -> frozenset[Node]:
    """The nodes that a call of a block made; of a block whose parts are called alone, all that its parts made."""
    plain = path.partition("@")[0]
    calls = frozenset(node for node in graph.nodes if called(node, plain) == path)
    return calls or frozenset(
        node
        for node in graph.nodes
        if any(f"{place}.".startswith(f"{plain}.") for place, _ in (node.meta.get("nn_module_stack") or {}).values())
    )


def skips(layers: Sequence[Layer]) -> dict[Layer, Obstacle]:
    """Layers whose output the next one reads and something farther along as well: a connection that would then read
    what is not there any more."""
    found = {}
    for layer in layers:
        following = [other for other in layers if other.entry is layer.exit]
        inside = frozenset().union(*(other.inside for other in following))
        beyond = [user for user in layer.exit.users if user not in inside | layer.inside and not is_size_read(user)]
        if following and beyond:
            reason = f"its output skips ahead: `{following[0].site.path}` reads it, and {_reader(beyond[-1])}"
            found[layer] = Obstacle(beyond[-1], reason)
    return found


def alive(graph: Graph, removed: Iterable[Layer] = ()) -> set[Node]:
    """The nodes that the outputs need once the layers are gone; calls that write into what is needed count with it."""
    gone = {layer.exit: layer for layer in removed}
    writers = [node for node in graph.nodes if writes(node) and not _lost(node, gone)]
    needed: set[Node] = set()
    todo = [node for node in graph.nodes if node.op == "output"]
    while todo:
        _need(todo, gone, needed)
        stored = {_stored(node) for node in needed}
        todo = [node for node in writers if node not in needed and _stored(node) in stored]
    return needed


def origin(layer: Layer, removed: Iterable[Layer]) -> Node:
    """What stands in for a removed layer's output, other removed layers in front of it left out as well."""
    gone = {other.exit: other for other in removed}
    node = layer.entry
    while node in gone:
        node = gone[node].entry
    return node


def _need(todo: list[Node], gone: dict[Node, Layer], needed: set[Node]) -> None:
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(_redirected(source, node, gone) for source in node.all_input_nodes)


def _redirected(source: Node, user: Node, gone: dict[Node, Layer]) -> Node:
    while source in gone and user not in gone[source].inside:
        source = gone[source].entry
    return source


def _stored(node: Node) -> Node:
    """The node that made the memory this one is a view of, or writes into."""
    while node.op == "call_function" and node.all_input_nodes and aliases(node):
        node = node.all_input_nodes[0]
    return node


def _lost(node: Node, gone: dict[Node, Layer]) -> bool:
    """Whether a call belongs to a removed layer and works on its stream."""
    return any(node in layer.inside and _reaches(node, layer.entry, layer.inside) for layer in gone.values())


def _closed(graph: Graph, inside: frozenset[Node]) -> frozenset[Node]:
    """With the nodes between parts of the block, and the addition that closes it, where other code makes them."""
    outs = _outs(inside)
    if any(_sources(out, inside) for out in outs):
        return inside
    inside = inside | _between(graph, inside)
    for _ in range(BETWEEN):
        outs = _outs(inside)
        users = {user for out in outs for user in out.users if user not in inside and not _idle(user)}
        if any(_sources(out, inside) for out in outs) and len(outs) == 1 or len(users) != 1:
            return inside
        (user,) = users
        if not _carries(user):
            return inside
        inside = inside | {user}
    return inside


def _between(graph: Graph, inside: frozenset[Node]) -> set[Node]:
    """Nodes that are made of what is inside and that something inside is made of."""
    ahead: set[Node] = set()
    for node in graph.nodes:
        if any(source in inside or source in ahead for source in _values(node)):
            ahead.add(node)
    found, todo = set(), list(inside & ahead)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(source for source in _values(node) if source in ahead)
    return found


def _values(node: Node) -> list[Node]:
    """What a node reads but for sizes: tensors, and lists of them."""
    return [source for source in node.all_input_nodes if isinstance(value(source), torch.Tensor | list | tuple)]


def _outs(inside: frozenset[Node]) -> list[Node]:
    """Tensors made inside and read outside, in graph order."""
    found = [n for n in inside if value(n) is not None and any(u not in inside and not _idle(u) for u in n.users)]
    return sorted(found)


def _idle(user: Node) -> bool:
    return not user.users and user.op != "output"


def _sources(out: Node, inside: frozenset[Node]) -> list[Node]:
    """The tensors outside that reach `out` by additions, norms and what keeps every coordinate: the streams in it."""
    found, seen, todo, added = [], set(), [out], False
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in inside:
            found += [node] if node.op != "get_attr" and _alike(node, out, dtype=True) else []
        elif _carries(node):
            added = added or is_op(node, *ADDS)
            todo.extend(_whole(node))
    return sorted(found) if added else []


def _carries(node: Node) -> bool:
    return node.op == "call_function" and (node.target in ELEMENTWISE or is_op(node, *NORMS, *RESHAPES))


def _whole(node: Node) -> list[Node]:
    """The operands of a call that are as large as what it makes, tokens in a row or not."""
    laid = is_op(node, *RESHAPES)
    return [one for one in tensor_inputs(node) if _alike(one, node) or laid and width(one) == width(node)]


def _alike(node: Node, other: Node, *, dtype: bool = False) -> bool:
    same = written(node) == written(other)
    return same and (not dtype or value(node).dtype == value(other).dtype)


def _reaches(node: Node, entry: Node, inside: frozenset[Node]) -> bool:
    """Whether a node is computed from the stream by what is inside, sizes included."""
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current is entry:
            return True
        if current not in seen and current in inside:
            todo.extend(current.all_input_nodes)
        seen.add(current)
    return False


def _adds(exit: Node, entry: Node, inside: frozenset[Node]) -> tuple[tuple[Node, Node], ...]:
    """The additions on the stream's way, last first; none where anything else lies on it."""
    found, node = [], exit
    while node is not entry:
        through = [source for source in _whole(node) if _streams(source, entry, inside)]
        if len(through) != 1 or node not in inside:
            return ()
        others = [source for source in tensor_inputs(node) if source is not through[0]]
        if is_op(node, aten.add, aten.add_) and len(others) == 1 and not node.kwargs:
            found.append((node, others[0]))
        elif not is_op(node, *SAME, *RESHAPES) or value(node).dtype != value(through[0]).dtype:
            return ()
        node = through[0]
    return tuple(found)


def _streams(node: Node, entry: Node, inside: frozenset[Node]) -> bool:
    """Whether a node is the stream: the entry, or joined to it."""
    return node is entry or node in inside and entry in _joined(node, inside)


def _joined(node: Node, inside: frozenset[Node]) -> list[Node]:
    found, seen, todo = [], set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current not in inside:
            found.append(current)
        elif _carries(current):
            todo.extend(_whole(current))
    return found


def _leak(out: Node, inside: frozenset[Node]) -> Obstacle:
    user = next(user for user in out.users if user not in inside and not _idle(user))
    return Obstacle(user, f"{_reader(user)} reads {describe(out)} inside of it, made at {where(out)}")


def _reader(user: Node) -> str:
    return "the model's output" if user.op == "output" else f"{describe(user)} at {where(user)}"


def _why_apart(out: Node, inside: frozenset[Node]) -> str:
    """What the stream is made of anew, where its output is no sum of its input."""
    start = out
    while _carries(start) and (through := _whole(start)):
        start = through[0]
        if start not in inside:
            break
    mixed = [source for source in _behind(start, inside) if source not in inside and source.op == "call_function"]
    told = " and ".join(dict.fromkeys(map(where, sorted(mixed)[-2:])))
    made = f"{describe(start)} makes its output anew"
    return f"its output is no sum of its input: {made}{f', from {told}' if told else ''}"


def _behind(node: Node, inside: frozenset[Node]) -> set[Node]:
    """The nearest tensors outside that a node is made of."""
    found, seen, todo = set(), set(), list(tensor_inputs(node))
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current not in inside:
            found.add(current)
        else:
            todo.extend(tensor_inputs(current))
    return found
