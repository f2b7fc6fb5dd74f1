"""A listing as JSON-able data."""

from dataclasses import asdict
from typing import Any

from torch.fx import GraphModule

from surgery.inspection.listing import Listing, Statement
from surgery.inspection.quantities import weigh
from surgery.inspection.select import select
from surgery.inspection.tensors import parameters

FORMAT = "surgery.show/1"


def document(
    graph_module: GraphModule, reference: str, *, touched: bool = False, site: str | None = None
) -> dict[str, Any]:
    """Every shown operation with its module, operator, inputs, value and the clauses that touched it; nothing folded.

    Raises SurgeryError S361 when no node lies in `site`.
    """
    listing = Listing(graph_module)
    shown = select(listing, touched=touched, site=site)
    return {
        "format": FORMAT,
        "model": reference,
        "parameters": weigh(parameters(graph_module).values())[0],
        "bytes": weigh(listing.tensors.values())[1],
        "inputs": [{"name": listing.names[node], "value": listing.values.text(node)} for node in listing.inputs],
        "nodes": [_node(statement, listing) for statement in shown],
    }


def _node(statement: Statement, listing: Listing) -> dict[str, Any]:
    node = statement.node
    return {
        "names": list(statement.names),
        "node": node.name,
        "operator": str(node.target) if node.op == "call_function" else node.op,
        "module": listing.owner[node],
        "text": listing.expressions.write(node),
        "value": statement.value,
        "weights": [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"],
        "touched": [asdict(mark) for mark in statement.marks],
    }
