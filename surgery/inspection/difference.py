"""What is different between two graphs: operations, tensors, sizes."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch.fx import GraphModule

from surgery.inspection.listing import Listing
from surgery.inspection.match import match
from surgery.inspection.quantities import weigh
from surgery.inspection.rows import Row, has_owners, rows, write
from surgery.inspection.tensor_diff import TensorChange, tensor_changes
from surgery.inspection.tensors import parameters
from surgery.passes.provenance import Provenance

FORMAT = "surgery.diff/1"


@dataclass(frozen=True)
class NodeChange:
    """`kind` is added, removed or changed; `what` names what changed: operation, shape.

    `before` and `after` are the lines, with the names of the first graph for whatever both have.
    """

    kind: str
    module: str
    before: str = ""
    after: str = ""
    before_value: str = ""
    after_value: str = ""
    what: tuple[str, ...] = ()
    marks: tuple[Provenance, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Changes in the order of the graph; `parameters` and `bytes` (buffers too) are before and after, tied once."""

    nodes: tuple[NodeChange, ...]
    tensors: tuple[TensorChange, ...]
    same_nodes: int
    same_tensors: int
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    listings: tuple[Listing, Listing]

    @property
    def identical(self) -> bool:
        """Same operations on same inputs, same tensors to the last bit."""
        return not self.nodes and not self.tensors

    def count(self, kind: str) -> int:
        return sum(change.kind == kind for change in self.nodes)

    def document(self, before: str, after: str) -> dict[str, Any]:
        """The JSON document, with everything unfolded. `before` and `after` say what was compared."""
        return {
            "format": FORMAT,
            "before": before,
            "after": after,
            "identical": self.identical,
            "size": {
                "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
                "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            },
            "nodes": {"same": self.same_nodes, "changes": [asdict(change) for change in self.nodes]},
            "tensors": {"same": self.same_tensors, "changes": [asdict(change) for change in self.tensors]},
        }


def diff(before: GraphModule, after: GraphModule) -> Difference:
    """Compare two captured or rewritten graphs; neither is changed and nothing of them is run.

    Dead nodes, and nodes that return what they are given, count for nothing.
    """
    listings = Listing(before), Listing(after)
    ours, theirs = rows(listings[0]), rows(listings[1])
    pairs = match(ours, theirs, by_module=all(map(has_owners, listings)))
    nodes = _Nodes(listings, pairs).changes(ours, theirs)
    tensors = tensor_changes(listings[0].tensors, listings[1].tensors)
    return Difference(
        tuple(nodes),
        tuple(tensors),
        len(pairs) - sum(change.kind == "changed" for change in nodes),
        len(listings[0].tensors) - sum(change.kind != "added" for change in tensors),
        _both(weigh(parameters(listing.module).values())[0] for listing in listings),
        _both(weigh(listing.tensors.values())[1] for listing in listings),
        listings,
    )


def _both(numbers: Iterable[int]) -> tuple[int, int]:
    before, after = numbers
    return before, after


class _Nodes:
    """Tells rows apart; what was added stands after what it follows in the second graph."""

    def __init__(self, listings: tuple[Listing, Listing], pairs: dict[Row, Row]):
        self.before, self.after = listings
        self.pairs = pairs
        self.taken = set(listings[0].names.values())
        self.renamed = {
            new: old
            for row, other in pairs.items()
            if len(row.names) == len(other.names)
            for old, new in zip(row.names, other.names, strict=True)
        }

    def changes(self, before: list[Row], after: list[Row]) -> list[NodeChange]:
        position = {row: index for index, row in enumerate(before)}
        origin = {other: row for row, other in self.pairs.items()}
        found = [((position[row], 0, 0), self._removed(row)) for row in before if row not in self.pairs]
        latest = -1
        for index, row in enumerate(after):
            if row not in origin:
                found.append(((latest, 1, index), self._added(row)))
                continue
            latest = position[origin[row]]
            found.append(((latest, 0, index), self._changed(origin[row], row)))
        return [change for _, change in sorted(found, key=lambda each: each[0]) if change]

    def _rename(self, name: str) -> str:
        """The first graph's name of what both have; what is new never carries the name of something old."""
        return self.renamed.get(name) or (f"{name}'" if name in self.taken else name)

    def _added(self, row: Row) -> NodeChange:
        text = write(row, self.after, self._rename)
        return NodeChange("added", row.heading, after=text, after_value=row.value, marks=row.marks)

    def _removed(self, row: Row) -> NodeChange:
        return NodeChange("removed", row.heading, write(row, self.before, str), before_value=row.value, marks=row.marks)

    def _changed(self, ours: Row, theirs: Row) -> NodeChange | None:
        texts = write(ours, self.before, str), write(theirs, self.after, self._rename)
        what = ["operation"] * (texts[0] != texts[1]) + ["shape"] * (ours.value != theirs.value)
        if not what:
            return None
        return NodeChange("changed", ours.heading, *texts, ours.value, theirs.value, tuple(what), theirs.marks)
