"""Write a captured graph as `graph.json`, format "surgery.graph/1": one line per tensor and per node, so it diffs.

    {"format": .., "inputs": {"names": [..], "structure": ..}, "output": ..,
     "modules": {path: class}, "tensors": {name: row}, "nodes": [node]}

A node has `name`, `op`, `target`, and where it has them `args`, `kwargs`, `value` (dtype and shape), `module` (the
path of the module it came from) and `marks` (which clauses touched it). See `arguments`, `structure`, `table`.
"""

import json
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from surgery.bundle.arguments import write_argument
from surgery.bundle.faults import STRUCTURE, UNSTORABLE
from surgery.bundle.operators import operator_name
from surgery.bundle.structure import write_structure
from surgery.bundle.table import write_entry
from surgery.bundle.tensors import Entry
from surgery.bundle.value import Symbols, value_of, write_value
from surgery.diagnostics import BundleError
from surgery.passes.provenance import provenance

FORMAT = "surgery.graph/1"
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
OPS = ("placeholder", "get_attr", "call_function", "output")


def write_graph(module: GraphModule, table: dict[str, Entry], home: torch.device) -> str:
    """The text of graph.json. Raises BundleError for a graph that a bundle cannot hold."""
    info = getattr(module.graph._codegen, "pytree_info", None)
    if info is None or info.in_spec is None or info.out_spec is None:
        raise BundleError(
            "the graph does not say how its inputs and outputs nest",
            code=STRUCTURE,
            help="save a graph made by `torch.export.export(...).module()`, not by `torch.fx.symbolic_trace`",
        )
    nodes = list(module.graph.nodes)
    symbols = Symbols()
    document = {
        "inputs": {"names": _input_names(info), "structure": write_structure(info.in_spec, "the inputs")},
        "output": write_structure(info.out_spec, "the output"),
        "modules": _modules(nodes),
        "tensors": {name: write_entry(entry) for name, entry in table.items()},
        "nodes": [_write_node(node, home, symbols) for node in nodes],
    }
    return _lines(document)


def _input_names(info: Any) -> list[str]:
    names = list(info.orig_args)
    return names[1:] if names[:1] == ["self"] else names


def _modules(nodes: list[Node]) -> dict[str, str]:
    """Path → class of every module a node came from, in order of appearance."""
    found: dict[str, str] = {}
    for node in nodes:
        for path, kind in _stack(node):
            found[path] = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return found


def _stack(node: Node) -> list[tuple[str, Any]]:
    """The modules a node came from, outermost first; torch.export leaves a stand-in where there was none."""
    stack = node.meta.get("nn_module_stack") or {}
    return [owner for owner in stack.values() if owner[0] != NO_MODULE]


def _write_node(node: Node, home: torch.device, symbols: Symbols) -> dict[str, Any]:
    place = f"node `{node.name}`"
    if node.op not in OPS:
        raise BundleError(
            f"{place} is a `{node.op}` of `{node.target}`, which a bundle cannot hold",
            code=UNSTORABLE,
            help="capture the model again with torch.export, which leaves tensor operators only",
        )
    line: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op != "output":
        line["target"] = operator_name(node.target, place) if node.op == "call_function" else node.target
    if node.args:
        line["args"] = write_argument(_output(node) if node.op == "output" else list(node.args), home, place)
    if node.kwargs:
        line["kwargs"] = {key: write_argument(value, home, place) for key, value in node.kwargs.items()}
    return line | _remarks(node, symbols)


def _output(node: Node) -> list[Any]:
    """The flat list of what the graph returns."""
    value = node.args[0]
    return list(value) if isinstance(value, list | tuple) else pytree.tree_leaves(value)


def _remarks(node: Node, symbols: Symbols) -> dict[str, Any]:
    """What is known of a node besides what it does."""
    remarks: dict[str, Any] = {}
    value = value_of(node, symbols) if node.op != "output" else None
    if value is not None:
        remarks["value"] = write_value(value)
    stack = _stack(node)
    if stack:
        remarks["module"] = stack[-1][0]
    marks = provenance(node)
    if marks:
        remarks["marks"] = [{"clause": mark.clause, "place": mark.place, "by": mark.by} for mark in marks]
    return remarks


def _lines(document: dict[str, Any]) -> str:
    parts = [f'"format": {json.dumps(FORMAT)}']
    for key, value in document.items():
        if isinstance(value, list):
            body = ",\n  ".join(map(json.dumps, value))
            parts.append(f'"{key}": [\n  {body}\n ]')
        elif key in ("modules", "tensors") and value:
            body = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in value.items())
            parts.append(f'"{key}": {{\n  {body}\n }}')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"
