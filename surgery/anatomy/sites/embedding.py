"""Embedding tables and what they embed: classes, tokens, segments, positions, timesteps."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch.fx import GraphModule, Node
from torch.nn import Parameter

from surgery.anatomy.graphs import (
    aten,
    attribute,
    calls,
    is_op,
    owner,
    shape,
    tensor_ancestors,
    tensor_inputs,
    weight_of,
    width,
)
from surgery.anatomy.site import Site
from surgery.anatomy.sites.conditioning import Conditioning


POSITIONS = re.compile(r"(^|_)pos(itions?|_ids?)?($|_)")
COUNTED = (aten.cumsum, aten.arange)
PASSES = (aten.slice, aten.unsqueeze, aten.squeeze, aten.expand, aten.to, aten.view, aten.reshape)


@dataclass(frozen=True)
class Embedding(Site):
    """A table [rows, width]; `table` is the weight's name.

    `role` is class, timestep, token, segment (a second table that ids of the sequence are looked up in, or one that
    always answers alike), position or condition.
    """

    role: str = "token"
    rows: int = 0
    width: int = 0
    table: str = ""

    def describe(self) -> str:
        return f"{self.role} ({self.rows} × {self.width})"


def find_embeddings(graph_module: GraphModule, conditioning: tuple[Conditioning, ...]) -> Iterator[Embedding]:
    """Every table that ids are looked up in, and every learned position table that is added to a sequence."""
    roles = {node: "timestep" for site in conditioning for node in tensor_ancestors(site.of_time)}
    roles |= {site.table: "class" for site in conditioning}
    found: dict[str, Embedding] = {}
    for node in calls(graph_module, aten.embedding):
        weight = weight_of(node)
        if weight is not None and weight.target not in found:
            found[weight.target] = _site(node, weight, roles.get(node) or _role(node))
    for node in calls(graph_module, aten.add):
        for weight in map(_origin, node.all_input_nodes):
            if weight.target not in found and _is_position_table(graph_module, weight, node):
                found[weight.target] = _site(node, weight, "position")
    for site in found.values():
        yield replace(site, role="segment") if _is_second(site, found.values()) else site


def _site(node: Node, weight: Node, role: str) -> Embedding:
    rows, size = shape(weight)[-2:]
    path = owner(node) if node.target == aten.embedding.default else weight.target.removesuffix(".weight")
    return Embedding(kind="embedding", path=path, nodes=(node,), role=role, rows=rows, width=size, table=weight.target)


def _role(node: Node) -> str:
    """By what the ids are: one per sample conditions, a sequence of the input is tokens, one counted is positions."""
    ids = node.args[1]
    behind = _values_behind(ids)
    inputs = [source for source in behind if source.op == "placeholder"]
    if any(POSITIONS.search(source.name) for source in inputs) or any(is_op(source, *COUNTED) for source in behind):
        return "position"
    if inputs:
        return "condition" if len(shape(ids) or ()) < 2 else "token"
    stored = [shape(source) for source in behind if source.op == "get_attr"]
    rows = shape(weight_of(node))[0]
    return "position" if not stored or any(sizes and sizes[-1] == rows for sizes in stored) else "segment"


def _values_behind(ids: Node) -> set[Node]:
    """What ids are made of, where they are picked out of a tensor that tensor alone."""
    seen, todo = set(), [ids]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        picked = is_op(current, aten.gather, aten.index, aten.index_select)
        todo.extend([current.args[0]] if picked else tensor_inputs(current))
    return seen


def _is_second(site: Embedding, others: Iterable[Embedding]) -> bool:
    """Whether its rows are added to those of a larger table of tokens, as those of a text's segments are."""
    if site.role != "token":
        return False
    met = _sums(site.nodes[0])
    return any(other.role == "token" and other.rows > site.rows and met & _sums(other.nodes[0]) for other in others)


def _sums(node: Node) -> set[Node]:
    """The sums a row goes into before anything else is made of it."""
    found, todo = set(), [node]
    while todo:
        for user in todo.pop().users:
            if is_op(user, aten.add) and user not in found and len(found) < 4:
                found.add(user)
                todo.append(user)
    return found


def _is_vector(addend: Node) -> bool:
    """Whether it is one vector per sample, reshaped."""
    while is_op(addend, *PASSES, aten.unflatten):
        addend = addend.args[0]
    return len(shape(addend) or ()) < 3 and addend.op != "get_attr"


def _origin(addend: Node) -> Node:
    while is_op(addend, *PASSES):
        addend = addend.args[0]
    return addend


def _is_position_table(graph_module: GraphModule, weight: Node, add: Node) -> bool:
    """A parameter [.., positions, D] of which the rows, or the first of them, are added to every sample [B, T, D]."""
    sizes, target = shape(weight), shape(add)
    if weight.op != "get_attr" or not sizes or not target or len(target) != 3 or len(sizes) < 2:
        return False
    if not isinstance(attribute(graph_module, weight.target), Parameter):
        return False
    if any(_is_vector(other) for other in add.all_input_nodes if _origin(other) is not weight):
        return False
    fits = sizes[-2] == target[-2] or not isinstance(target[-2], int)
    return fits and width(weight) == width(add) and sizes[-2] != 1
