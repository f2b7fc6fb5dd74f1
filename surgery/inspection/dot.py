"""A graph for Graphviz: a cluster per module, what a clause touched in colour."""

from collections.abc import Iterator
from itertools import count

from torch.fx import GraphModule, Node

from surgery.inspection.code import mark_text
from surgery.inspection.listing import Listing, Statement
from surgery.inspection.owners import parents
from surgery.inspection.repeats import Repeats
from surgery.inspection.select import select

HEAD = """digraph model {
  rankdir=TB; compound=true; fontname="Helvetica"; newrank=true;
  node [shape=box, style="rounded,filled", fillcolor="#f6f8fa", color="#8c959f", fontname="Helvetica", fontsize=10];
  edge [color="#57606a", arrowsize=0.6];
  graph [style="rounded", color="#d0d7de", fontcolor="#57606a", fontsize=10];"""
TOUCHED = 'fillcolor="#fff3c4", color="#bf8700", penwidth=2'
FOLDED = 'shape=folder, style="filled", fillcolor="#eaeef2"'


def dot(graph_module: GraphModule, *, full: bool = False, touched: bool = False, site: str | None = None) -> str:
    """The graph in Graphviz's language: `surgery show MODEL --dot | dot -Tsvg > model.svg`.

    Blocks that do the same as an earlier one are one box unless `full`; `touched` and `site` keep only those
    nodes. Raises SurgeryError S361 when no node lies in `site`.
    """
    listing = Listing(graph_module)
    return "\n".join([HEAD, *_Drawing(listing, full, touched, site).lines(), "}"]) + "\n"


class _Drawing:
    def __init__(self, listing: Listing, full: bool, touched: bool, site: str | None):
        self.listing = listing
        self.statements = select(listing, touched=touched, site=site)
        self.repeats = Repeats(listing, () if full else self.statements)
        self.with_ends = not (touched or site)
        self.numbers = count()
        self.ids: dict[object, str] = {}
        self.boxes = {self._box(statement.node): statement for statement in self.statements}

    def _box(self, node: Node) -> object:
        """The node, or the fold that stands for it."""
        return self.repeats.fold_of(node) or node

    def _id(self, box: object) -> str:
        return self.ids.setdefault(box, f"n{next(self.numbers)}")

    def lines(self) -> Iterator[str]:
        if self.with_ends:
            for node in self.listing.inputs:
                yield f"  {self._id(node)} [label={_quoted(self.listing.names[node])}, shape=ellipse];"
        yield from self._modules()
        if self.with_ends:
            yield f'  {self._id(self.listing.output)} [label="return", shape=ellipse];'
        yield from sorted(set(self._edges()), key=_edge_order)

    def _modules(self) -> Iterator[str]:
        """Boxes in clusters: every run of lines opens the clusters it lies in; Graphviz joins those of one name."""
        clusters: dict[str, str] = {}
        for box, statement in self.boxes.items():
            path = statement.heading if box is statement.node else box.path
            ups = list(reversed(list(parents(path))))
            opening = "".join(
                f"subgraph {clusters.setdefault(up, f'cluster_{len(clusters)}')} {{ label={_quoted(up)}; " for up in ups
            )
            yield f"  {opening}{self._line(box, statement)}{' }' * len(ups)}"

    def _line(self, box: object, statement: Statement) -> str:
        if box is not statement.node:
            style = f"{FOLDED}, {TOUCHED}" if box.touched else FOLDED
            return f"{self._id(box)} [label={_quoted(str(box))}, {style}];"
        label = "\n".join([f"{', '.join(statement.names)} = {statement.text}", statement.value]).strip()
        style = f", {TOUCHED}, tooltip={_quoted(_marks(statement))}" if statement.marks else ""
        return f"{self._id(box)} [label={_quoted(label)}{style}];"

    def _edges(self) -> Iterator[str]:
        known = {*self.boxes, *(self.listing.inputs if self.with_ends else ())}
        targets = [statement.node for statement in self.statements] + [self.listing.output] * self.with_ends
        for node in targets:
            for source in self._sources(node):
                start, end = self._box(source), self._box(node)
                if start in known and start is not end:
                    yield f"  {self._id(start)} -> {self._id(end)};"

    def _sources(self, node: Node) -> Iterator[Node]:
        """What a node reads that has a box, looking through hidden, inlined and unpacked nodes."""
        for source in node.all_input_nodes:
            resolved = self.listing.seen.resolve(source)
            if resolved.op == "placeholder" or self._box(resolved) in self.boxes:
                yield resolved
            else:
                yield from self._sources(resolved)


def _edge_order(line: str) -> list[int]:
    return [int(word.strip(" n;")) for word in line.split("->")]


def _marks(statement: Statement) -> str:
    return "\n".join(mark_text(mark) for mark in statement.marks)


def _quoted(text: str) -> str:
    r"""A Graphviz string: quotes and backslashes escaped, line ends as `\n`."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
