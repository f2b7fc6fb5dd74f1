"""A captured or rewritten graph as code a person would write."""

from collections.abc import Iterator
from itertools import groupby

from torch.fx import GraphModule, Node

from surgery.inspection.listing import Listing, Statement
from surgery.inspection.quantities import bytes_text, count_text, weigh
from surgery.inspection.repeats import Fold, Repeats
from surgery.inspection.select import select
from surgery.inspection.tensors import parameters
from surgery.passes.provenance import Provenance

INDENT = "    "
LEGEND = "# `.name` is a weight of the module named above it"
WIDEST = 76
LONGEST = 100


def code(graph_module: GraphModule, *, full: bool = False, touched: bool = False, site: str | None = None) -> str:
    """The graph as a Python-like function: a line per operation, grouped by module, shapes at the end of the line.

    A name that begins with a dot is a weight of the module in the heading. Blocks that do the same as an earlier
    one are one line unless `full`; `touched` keeps only what a clause changed; `site` only a module (a dotted path,
    `*` for any part of it). Raises SurgeryError S361 when no node lies in `site`.
    """
    listing = Listing(graph_module)
    shown = select(listing, touched=touched, site=site)
    lines = [_title(listing), LEGEND, _signature(listing), *_body(listing, shown, full)]
    if not (touched or site):
        lines += ["", f"{INDENT}return {listing.expressions.write_value(listing.output.args[0])}"]
    return "\n".join(lines) + "\n"


def _title(listing: Listing) -> str:
    count, _ = weigh(parameters(listing.module).values())
    _, size = weigh(listing.tensors.values())
    marked = sum(bool(statement.marks) for statement in listing.statements)
    parts = [
        listing.classes.get("", "graph"),
        f"{count_text(count, 'parameter')} ({bytes_text(size)})",
        count_text(len(listing.statements), "operation"),
        f"✂ {marked} touched" if marked else "untouched",
    ]
    return "# " + " · ".join(parts)


def _signature(listing: Listing) -> str:
    names = [_parameter(node, listing) for node in listing.inputs]
    shapes = [f"{listing.names[node]} {text}" for node in listing.inputs if (text := listing.values.text(node))]
    line = f"def forward({', '.join(names)}):"
    comment = f"# {', '.join(shapes)}"
    if not shapes:
        return line
    return f"{line}  {comment}" if len(line) + len(comment) < LONGEST else f"{line}\n{INDENT}{comment}"


def _parameter(node: Node, listing: Listing) -> str:
    value = node.meta.get("val")
    plain = "val" in node.meta and (value is None or isinstance(value, bool | int | float | str))
    return f"{listing.names[node]}={value!r}" if plain else listing.names[node]


def _body(listing: Listing, shown: list[Statement], full: bool) -> Iterator[str]:
    repeats = Repeats(listing, () if full else shown)
    told: set[Fold] = set()
    for (heading, fold), group in groupby(shown, lambda each: (each.heading, repeats.fold_of(each.node))):
        if fold is None:
            yield from ("", f"{INDENT}# {heading or listing.classes.get('', 'model')}")
            yield from _section(list(group))
        elif fold not in told:
            yield from ("", f"{INDENT}# {fold}")
            told.add(fold)


def _section(statements: list[Statement]) -> Iterator[str]:
    lefts = [f"{', '.join(statement.names)} = {statement.text}" for statement in statements]
    width = max((len(left) for left in lefts if len(left) <= WIDEST), default=0)
    marks: tuple[Provenance, ...] = ()
    for left, statement in zip(lefts, statements, strict=True):
        if statement.marks != marks:
            yield from (f"{INDENT}# ✂ {mark_text(mark)}" for mark in statement.marks)
        marks = statement.marks
        comment = _comment(statement)
        yield f"{INDENT}{left:<{width}}  # {comment}" if comment else INDENT + left


def _comment(statement: Statement) -> str:
    parts = ["✂"] if statement.marks else []
    parts += [statement.value] if statement.value else []
    parts += [f"weight {' and '.join(statement.weights)}"] if statement.weights else []
    return " ".join(parts)


def mark_text(mark: Provenance) -> str:
    """`prune tail 66% of class embeddings (quickstart.surgery:4)`."""
    return f"{mark.clause} ({short_place(mark.place)})"


def short_place(place: str) -> str:
    """`file:line` of `file:line:column`."""
    start, _, column = place.rpartition(":")
    return start if column.isdigit() and start.rpartition(":")[2].isdigit() else place
