"""`sparsify attention …`: which way of choosing edges a clause asks for."""

from importlib import import_module
from typing import Any

from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError

WAYS = {"gates": "gates", "blocks": "block_pattern", "topk": "topk", "edges": "given_edges"}
"""A module of this room for each, with `plan(operation, anatomy, sites)`."""


def plan_edges(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[Any]:
    """The works of a clause. Raises RefusalError: S314 for what is no attention; what each way refuses."""
    kinds = {site.kind for site in sites}
    if kinds != {"attention"}:
        raise RefusalError(
            f"sparsify cannot act on `{operation.target.text or operation.target}`",
            code="S314",
            span=operation.clause.span if operation.clause else None,
            help="sparsify `attention`, or part of it, as in `attention in layers 4..11`",
        )
    return import_module(f"surgery.targets.{WAYS[way_of(operation)]}").plan(operation, anatomy, sites)


def way_of(operation: Any) -> str:
    """gates, blocks, topk or edges."""
    if operation.to is not None:
        return "edges"
    return "gates" if operation.via == "auto" else operation.via
