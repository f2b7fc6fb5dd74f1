"""A listing as rows that can be matched with those of another graph."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from surgery.inspection.expression import Expressions
from surgery.inspection.listing import Listing
from surgery.inspection.ops import op_name
from surgery.inspection.owners import module_stack
from surgery.passes.provenance import Provenance


@dataclass(frozen=True)
class Row:
    """An input, an operation or the output.

    `token`, operator and weights, is what makes two rows candidates for each other; `context` adds what it reads.
    """

    node: Node
    names: tuple[str, ...]
    owner: str
    heading: str
    token: tuple[str, ...]
    context: tuple[tuple[str, ...], ...]
    value: str
    marks: tuple[Provenance, ...]


def rows(listing: Listing) -> list[Row]:
    """All rows in graph order."""
    inputs = [_end(node, listing, (listing.names[node],), "input") for node in listing.inputs]
    return [*inputs, *_operations(listing), _end(listing.output, listing, (), "output")]


def has_owners(listing: Listing) -> bool:
    """Whether the graph remembers modules at all; one read from a file may not."""
    return any(module_stack(node) for node in listing.seen.nodes)


def write(row: Row, listing: Listing, rename: Callable[[str], str]) -> str:
    """The row as text, with every node called what `rename` makes of its name and weights by their full names."""
    if row.node.op == "placeholder":
        return ", ".join(map(rename, row.names))

    def name_of(node: Node, heading: str) -> str:
        node = listing.seen.resolve(node)
        if node in listing.seen.inlined:
            return expressions.write(node)
        return rename(listing.names[node]) if node in listing.names else listing.name_of(node)

    expressions = Expressions(name_of, listing.values)
    if row.node.op == "output":
        return "return " + expressions.write_value(row.node.args[0])
    return f"{', '.join(map(rename, row.names))} = {expressions.write(row.node)}"


def _end(node: Node, listing: Listing, names: tuple[str, ...], kind: str) -> Row:
    token = kind, *names
    return Row(node, names, "", "", token, (token,), listing.values.text(node), listing.marks(node))


def _operations(listing: Listing) -> list[Row]:
    return [
        Row(
            statement.node,
            statement.names,
            listing.owner[statement.node],
            statement.heading,
            _token(statement.node),
            _context(statement.node, listing),
            statement.value,
            statement.marks,
        )
        for statement in listing.statements
    ]


def _token(node: Node) -> tuple[str, ...]:
    weights = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    return op_name(node.target), *weights


def _context(node: Node, listing: Listing) -> tuple[tuple[str, ...], ...]:
    sources = (listing.seen.resolve(source) for source in node.all_input_nodes)
    return _token(node), *(_token(source) for source in sources)
