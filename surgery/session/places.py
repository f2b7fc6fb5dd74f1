"""Documents that leave this machine: places in the bundle's own `spec.surgery`, and no path of the machine."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.fx import GraphModule

from surgery.language import Spec, format, parse
from surgery.passes.graph_copy import copy_graph_module
from surgery.passes.provenance import KEY, provenance

SPEC = "spec.surgery"


def saved_places(spec: Spec) -> dict[str, str]:
    """Where each clause stands in `spec.surgery`, by where it was written: the same for a text, a YAML file, a pipe."""
    saved = parse(format(spec), SPEC)
    return {one.place: other.place for one, other in zip(spec.clauses, saved.clauses, strict=True)}


def portable(document: Any, places: Mapping[str, str]) -> Any:
    """The document with every `place` moved and every `reference` by absolute path shortened to its last part."""
    if isinstance(document, list | tuple):
        return [portable(value, places) for value in document]
    if not isinstance(document, Mapping):
        return document
    moved = {key: portable(value, places) for key, value in document.items()}
    if isinstance(moved.get("place"), str):
        moved["place"] = places.get(moved["place"], moved["place"])
    if isinstance(moved.get("reference"), str):
        moved["reference"] = without_folders(moved["reference"])
    return moved


def with_portable_marks(graph_module: GraphModule, places: Mapping[str, str]) -> GraphModule:
    """A copy over the same tensors whose nodes' marks have moved places."""
    copied = copy_graph_module(graph_module)
    for node in copied.graph.nodes:
        if provenance(node):
            node.meta[KEY] = tuple(replace(one, place=places.get(one.place, one.place)) for one in provenance(node))
    return copied


def without_folders(reference: str) -> str:
    """`/home/me/dit` → `dit`, `diffusers:/home/me/dit` → `diffusers:dit`; what is relative stays."""
    scheme, colon, location = reference.rpartition(":")
    path = location.strip("\"'")
    return f"{scheme}{colon}{os.path.basename(path.rstrip('/'))}" if os.path.isabs(path) else reference
