"""Which clause touched a node. Kept in `node.meta["surgery"]` as a tuple of Provenance, oldest first."""

from dataclasses import dataclass

from torch.fx import Node

KEY = "surgery"


@dataclass(frozen=True)
class Provenance:
    """`clause` is the text a person wrote, `place` is `file:line:column`, `by` is the pass that did it."""

    clause: str
    place: str
    by: str


def provenance(node: Node) -> tuple[Provenance, ...]:
    """Who touched this node; empty for a node as captured."""
    return node.meta.get(KEY, ())


def stamp(node: Node, mark: Provenance) -> None:
    """Add a mark to a node, once."""
    marks = provenance(node)
    if mark not in marks:
        node.meta[KEY] = (*marks, mark)
