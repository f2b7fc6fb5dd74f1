"""The conditional vector c of a diffusion transformer: what `activation → linear → modulation` reads.

c adds a class embedding and a function of the timestep. DiT-like code makes it once; diffusers makes an untied copy
per block and reads the first one's again for the output. Sites that share weights must be cut together.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Dimension, is_size_read, trace_dimension
from surgery.anatomy.graphs import (
    aten,
    calls,
    is_op,
    owner,
    shape,
    tensor_ancestors,
    tensor_inputs,
    weight_of,
    width,
    written,
)
from surgery.anatomy.site import Site

ADDS = (aten.add.Tensor, aten.add_.Tensor)
AFFINE = (aten.add, aten.sub, aten.mul, aten.div, aten.dropout, aten.to, aten.clone, aten.contiguous, aten.alias)
TIMES = re.compile(r"(^|_)(t|time|times|timesteps?|steps?|sigmas?)($|_)")
DEPTH = 4
"""How many linears may stand between the class table and c."""


@dataclass(frozen=True)
class Conditioning(Site):
    """`width` D of c; `classes` rows of the class table; `layers` modulation layers read c.

    Nodes: `table` is the embedding call; `join` adds `of_class` and `of_time`; `vector` is c [B, D] or [B, 1, D], the
    join itself unless constants scale or shift it afterwards.
    """

    width: int = 0
    classes: int = 0
    layers: int = 0
    vector: Node | None = field(default=None, repr=False, compare=False)
    join: Node | None = field(default=None, repr=False, compare=False)
    of_class: Node | None = field(default=None, repr=False, compare=False)
    of_time: Node | None = field(default=None, repr=False, compare=False)
    table: Node | None = field(default=None, repr=False, compare=False)
    dimension: Dimension | None = field(default=None, repr=False, compare=False)

    def describe(self) -> str:
        return f"c = time + class, width {self.width}, {self.classes} classes, read by {self.layers} modulation layers"


def find_conditioning(graph_module: GraphModule) -> Iterator[Conditioning]:
    """Every conditional vector that a class embedding and a timestep meet in."""
    found: dict[Node, list[Conditioning]] = {}
    for table in calls(graph_module, aten.embedding):
        site = _follow(table, table, DEPTH) if _is_per_sample(table) else None
        if site:
            found.setdefault(site.vector, []).append(site)
    for sites in found.values():
        yield min(sites, key=_like_time)


def _is_per_sample(table: Node) -> bool:
    """One id per sample, [B] or [B, 1], that comes from an input."""
    ids = shape(table.args[1]) or ()
    return (len(ids) == 1 or len(ids) == 2 and ids[1] == 1) and _reads_input(table.args[1])


def _like_time(site: Conditioning) -> tuple[bool, int]:
    """Where timesteps are looked up in a table too, theirs is the one fed by a `t` or `timestep`, or the longer one."""
    names = [node.name for node in tensor_ancestors(site.table.args[1]) if node.op == "placeholder"]
    return any(TIMES.search(name) for name in names), site.classes


def _follow(table: Node, node: Node, depth: int) -> Conditioning | None:
    dimension = trace_dimension(node)
    joins = [join for join in dimension.nodes if join.target in ADDS and _joins_time(join, node)]
    if joins and (dimension.consumers or _behind_norms(dimension, joins[-1])):
        return _site(table, dimension, joins[-1], node)
    if not depth:
        return None
    for linear in dimension.consumers:
        found = _follow(table, linear, depth - 1)
        if found:
            return found
    return None


def _joins_time(join: Node, branch: Node) -> bool:
    """Whether one addend carries the class and another, made from an input, does not; one vector per sample."""
    sizes = shape(join) or ()
    if not (len(sizes) == 2 or len(sizes) == 3 and sizes[1] == 1):
        return False
    sides = tensor_inputs(join)
    with_class = [side for side in sides if branch in tensor_ancestors(side)]
    return len(with_class) == 1 and any(_reads_input(side) for side in sides if side not in with_class)


def _reads_input(node: Node) -> bool:
    return any(source.op == "placeholder" for source in tensor_ancestors(node))


def _behind_norms(dimension: Dimension, join: Node) -> tuple[Node, ...]:
    """The linears that read c through an operation that mixes its coordinates, such as a norm."""
    rank = len(shape(join))
    mixing = [found.node for found in dimension.obstacles if width(found.node) == dimension.width]
    norms = [node for node in mixing if len(shape(node)) == rank]
    return tuple(linear for norm in norms for linear in trace_dimension(norm).consumers)


def _site(table: Node, dimension: Dimension, join: Node, branch: Node) -> Conditioning:
    sides = tensor_inputs(join)
    of_class = next(side for side in sides if branch in tensor_ancestors(side))
    weight = weight_of(table)
    return Conditioning(
        kind="conditioning",
        path=owner(join),
        nodes=(join,),
        width=width(join),
        vector=_settled(join),
        join=join,
        of_class=of_class,
        of_time=next(side for side in sides if side is not of_class),
        table=table,
        dimension=dimension,
        layers=len(dimension.consumers or _behind_norms(dimension, join)),
        classes=shape(weight)[0] if weight is not None else 0,
    )


def _settled(join: Node) -> Node:
    """c as activations read it: the sum, or what constants make of it by scaling and shifting."""
    node = join
    while True:
        users = [user for user in node.users if not is_size_read(user)]
        if len(users) != 1 or not is_op(users[0], *AFFINE) or written(users[0]) != written(node):
            return node
        others = [source for source in users[0].args if isinstance(source, Node) and source is not node]
        if users[0].args.count(node) > 1 or any(map(_reads_input, others)):
            return node
        node = users[0]
