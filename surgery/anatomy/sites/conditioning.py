"""The conditional vector c of a diffusion transformer: what `activation → linear → modulation` reads.

c adds a class embedding and a function of the timestep. DiT-like code makes it once; diffusers makes an untied copy
per block and reads the first one's again for the output. Sites that share weights must be cut together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Dimension, trace_dimension
from surgery.anatomy.graphs import aten, calls, is_op, owner, shape, tensor_ancestors, tensor_inputs, weight_of, width
from surgery.anatomy.site import Site

ADDS = (aten.add.Tensor, aten.add_.Tensor)
DEPTH = 4
"""How many linears may stand between the class table and c."""


@dataclass(frozen=True)
class Conditioning(Site):
    """`width` D of c; `classes` rows of the class table; `layers` modulation layers read c.

    Nodes: `vector` is c [B, D]; `of_class` and `of_time` are its two addends; `table` is the embedding call.
    """

    width: int = 0
    classes: int = 0
    layers: int = 0
    vector: Node | None = field(default=None, repr=False, compare=False)
    of_class: Node | None = field(default=None, repr=False, compare=False)
    of_time: Node | None = field(default=None, repr=False, compare=False)
    table: Node | None = field(default=None, repr=False, compare=False)
    dimension: Dimension | None = field(default=None, repr=False, compare=False)

    def describe(self) -> str:
        return f"c = time + class, width {self.width}, {self.classes} classes, read by {self.layers} modulation layers"


def find_conditioning(graph_module: GraphModule) -> Iterator[Conditioning]:
    """Every conditional vector that a class embedding and a timestep meet in."""
    seen: set[Node] = set()
    for table in calls(graph_module, aten.embedding):
        if not _is_per_sample(table):
            continue
        site = _follow(table, table, DEPTH)
        if site and site.vector not in seen:
            seen.add(site.vector)
            yield site


def _is_per_sample(table: Node) -> bool:
    """One id per sample: [B], or [B, 1]."""
    ids = shape(table.args[1]) or ()
    return len(ids) == 1 or len(ids) == 2 and ids[1] == 1


def _follow(table: Node, node: Node, depth: int) -> Conditioning | None:
    dimension = trace_dimension(node)
    joins = [join for join in dimension.nodes if join.target in ADDS and _joins_time(join, node)]
    if joins and dimension.consumers:
        return _site(table, dimension, joins[-1], node)
    if not depth:
        return None
    for linear in dimension.consumers:
        found = _follow(table, linear, depth - 1)
        if found:
            return found
    return None


def _joins_time(join: Node, branch: Node) -> bool:
    """Whether one addend carries the class and another, made from an input, does not."""
    sides = [source for source in tensor_inputs(join)]
    with_class = [side for side in sides if branch in tensor_ancestors(side)]
    without = [side for side in sides if side not in with_class]
    return len(with_class) == 1 and any(_reads_input(side) for side in without)


def _reads_input(node: Node) -> bool:
    return any(source.op == "placeholder" for source in tensor_ancestors(node))


def _site(table: Node, dimension: Dimension, join: Node, branch: Node) -> Conditioning | None:
    sides = tensor_inputs(join)
    of_class = next(side for side in sides if branch in tensor_ancestors(side))
    of_time = next(side for side in sides if side is not of_class)
    weight = weight_of(table)
    return Conditioning(
        kind="conditioning",
        path=_path(join, table),
        nodes=(join,),
        width=width(join),
        vector=join,
        of_class=of_class,
        of_time=of_time,
        table=table,
        dimension=dimension,
        layers=len(dimension.consumers),
        classes=shape(weight)[0] if weight is not None else 0,
    )


def _path(join: Node, table: Node) -> str:
    return owner(join) or ""


def class_tables(sites: tuple[Conditioning, ...]) -> set[Node]:
    return {site.table for site in sites if is_op(site.table, aten.embedding)}
