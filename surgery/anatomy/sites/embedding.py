"""Embedding tables and what they embed: classes, tokens, positions, timesteps."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, calls, owner, shape, tensor_ancestors, weight_of, width
from surgery.anatomy.site import Site
from surgery.anatomy.sites.conditioning import Conditioning


@dataclass(frozen=True)
class Embedding(Site):
    """A table [rows, width]; `role` is class, timestep, token, position or condition; `table` is the weight's name."""

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
    seen: set[str] = set()
    for node in calls(graph_module, aten.embedding):
        weight = weight_of(node)
        if weight is None or weight.target in seen:
            continue
        seen.add(weight.target)
        yield _site(node, weight, roles.get(node) or _role(node))
    for node in calls(graph_module, aten.add):
        for weight in node.all_input_nodes:
            if weight.target not in seen and _is_position_table(weight, node):
                seen.add(weight.target)
                yield _site(node, weight, "position")


def _site(node: Node, weight: Node, role: str) -> Embedding:
    rows, size = shape(weight)[-2:]
    path = owner(node) if node.target == aten.embedding.default else weight.target.removesuffix(".weight")
    return Embedding(kind="embedding", path=path, nodes=(node,), role=role, rows=rows, width=size, table=weight.target)


def _role(node: Node) -> str:
    """By what the ids are: one per sample conditions, a sequence from the input is tokens, made here is positions."""
    ids = shape(node.args[1]) or ()
    reads_input = any(source.op == "placeholder" for source in tensor_ancestors(node.args[1]))
    if not reads_input:
        return "position"
    return "condition" if len(ids) < 2 else "token"


def _is_position_table(weight: Node, add: Node) -> bool:
    sizes, target = shape(weight), shape(add)
    if weight.op != "get_attr" or not sizes or not target or len(target) < 3 or len(sizes) < 2:
        return False
    return sizes[-2:] == target[-2:] and width(weight) == width(add) and sizes[-2] != 1
