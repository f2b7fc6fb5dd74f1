"""Read `graph.json` back into a torch.fx.Graph, admitting nothing that `graph.py` does not write.

torch.fx turns a graph into Python source, so every name that reaches that source is checked to be a plain identifier
here, and every target to be an admitted operator: nothing in the file is evaluated or imported.
"""

import keyword
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec

from surgery.bundle.arguments import read_argument
from surgery.bundle.document import read_document
from surgery.bundle.faults import malformed
from surgery.bundle.graph import FORMAT, OPS
from surgery.bundle.operators import PythonOperator, find_operator
from surgery.bundle.signature import check_call
from surgery.bundle.structure import read_structure
from surgery.bundle.table import read_entries
from surgery.bundle.tensors import Entry
from surgery.bundle.value import KEY as VALUE
from surgery.bundle.value import read_value
from surgery.passes.provenance import KEY as MARKS
from surgery.passes.provenance import Provenance

NODES = 200_000
FILE = "graph.json"
NODE_KEYS = {"name", "op", "target", "args", "kwargs", "value", "module", "marks"}
TAKEN = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"}


@dataclass(frozen=True)
class Parsed:
    """A graph and the table of the tensors it reads."""

    graph: Graph
    table: dict[str, Entry]


def read_graph(content: bytes, home: torch.device) -> Parsed:
    """The graph of a bundle, for a model that lives on device `home`. Raises BundleError naming node and cure."""
    document = read_document(content, FILE, FORMAT)
    wanted = {"format", "inputs", "output", "modules", "tensors", "nodes"}
    if document.keys() != wanted:
        raise malformed(FILE, f"its keys are {', '.join(sorted(wanted))}")
    table = read_entries(document["tensors"], FILE)
    modules = _read_modules(document["modules"])
    names, inputs = _read_inputs(document["inputs"])
    output = read_structure(document["output"], f"{FILE}: output")
    graph = _Reader(home, table, modules).read(document["nodes"], inputs.num_leaves, output.num_leaves)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, inputs, output)))
    return Parsed(graph, table)


def _identifier(text: Any, place: str) -> str:
    good = isinstance(text, str) and text.isidentifier() and text.isascii() and not keyword.iskeyword(text)
    if not good or text in TAKEN or len(text) > 500:
        raise malformed(place, f"`{str(text)[:60]}` cannot be a name")
    return text


def _read_modules(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(kind, str) for kind in value.values()):
        raise malformed(FILE, "`modules` names a class for each path")
    return value


def _read_inputs(value: Any) -> tuple[list[str], TreeSpec]:
    """Argument names, positional ones first, and the structure ((positional, …), {keyword: …})."""
    place = f"{FILE}: inputs"
    if not isinstance(value, dict) or value.keys() != {"names", "structure"} or not isinstance(value["names"], list):
        raise malformed(place, "inputs have names and a structure")
    names = [_identifier(name, place) for name in value["names"]]
    spec = read_structure(value["structure"], place)
    parts = [] if spec.is_leaf() else spec.children()
    if spec.type is not tuple or [part.type for part in parts] != [tuple, dict]:
        raise malformed(place, "the structure of inputs is a tuple of a tuple and a dict")
    for key in parts[1].context:
        _identifier(key, place)
    if len(set(names)) != len(names) or len(names) != sum(part.num_children for part in parts):
        raise malformed(place, "every input has one name of its own")
    return names, spec


class _Reader:
    """Builds a graph node by node."""

    def __init__(self, home: torch.device, table: dict[str, Entry], modules: dict[str, str]) -> None:
        self.home, self.table, self.modules = home, table, modules
        self.graph = Graph()
        self.nodes: dict[str, Node] = {}
        self.stacks: dict[str, dict[str, tuple[str, str]]] = {}

    def read(self, lines: Any, inputs: int, outputs: int) -> Graph:
        if not isinstance(lines, list) or not 0 < len(lines) <= NODES:
            raise malformed(FILE, f"`nodes` is a list of 1 to {NODES} nodes")
        for index, line in enumerate(lines):
            name = line.get("name") if isinstance(line, dict) else None
            place = f"{FILE}: node `{str(name)[:80]}` (number {index + 1})"
            node = self._node(line, place)
            self._remark(node, line, place)
            if (node.op == "output") != (index == len(lines) - 1):
                raise malformed(place, "the last node, and only the last, is the output")
        if len(self.graph.find_nodes(op="placeholder")) != inputs:
            raise malformed(FILE, f"the inputs' structure has {inputs} leaves, the graph has other placeholders")
        if len(node.args[0]) != outputs:
            raise malformed(FILE, f"the output's structure has {outputs} leaves, the graph returns {len(node.args[0])}")
        return self.graph

    def _node(self, line: Any, place: str) -> Node:
        if not isinstance(line, dict) or not line.keys() <= NODE_KEYS:
            raise malformed(place, f"the keys of a node are {', '.join(sorted(NODE_KEYS))}")
        if line.get("op") not in OPS or not isinstance(line.get("target", ""), str):
            raise malformed(place, f"its op is one of {', '.join(OPS)}, its target is text")
        name = _identifier(line.get("name"), place)
        args, kwargs = self._arguments(line, place)
        node = getattr(self, f"_{line['op']}")(line.get("target", ""), args, kwargs, name, place)
        if node.name != name or name in self.nodes:
            raise malformed(place, "its name is taken")
        self.nodes[name] = node
        return node

    def _arguments(self, line: dict, place: str) -> tuple[tuple, dict]:
        args, kwargs = line.get("args", []), line.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise malformed(place, "`args` is a list and `kwargs` an object")
        read = [read_argument(value, self.nodes, self.home, place) for value in args]
        named = {key: read_argument(value, self.nodes, self.home, place) for key, value in kwargs.items()}
        return tuple(read), named

    def _placeholder(self, target: str, args: tuple, kwargs: dict, name: str, place: str) -> Node:
        if args or kwargs:
            raise malformed(place, "a placeholder takes no arguments")
        return self.graph.create_node("placeholder", _identifier(target, place), name=name)

    def _get_attr(self, target: str, args: tuple, kwargs: dict, name: str, place: str) -> Node:
        if args or kwargs or target not in self.table:
            raise malformed(place, f"`{target[:80]}` is not in the table of tensors")
        return self.graph.create_node("get_attr", target, name=name)

    def _call_function(self, target: str, args: tuple, kwargs: dict, name: str, place: str) -> Node:
        operator = find_operator(target, place)
        check_call(operator, target, args, kwargs, place)
        function = operator.function if isinstance(operator, PythonOperator) else operator
        return self.graph.create_node("call_function", function, args, kwargs, name)

    def _output(self, target: str, args: tuple, kwargs: dict, name: str, place: str) -> Node:
        if target or kwargs or not all(isinstance(value, Node | int | float | None) for value in args):
            raise malformed(place, "the output takes nodes, numbers and None")
        return self.graph.create_node("output", "output", (args,), name=name)

    def _remark(self, node: Node, line: dict, place: str) -> None:
        """Keep what is known of a node besides what it does, where the rest of surgery looks for it."""
        if "value" in line:
            node.meta[VALUE] = read_value(line["value"], place)
        if "module" in line:
            node.meta["nn_module_stack"] = self._stack(line["module"], place)
        if "marks" in line:
            node.meta[MARKS] = _read_marks(line["marks"], place)

    def _stack(self, path: Any, place: str) -> dict[str, tuple[str, str]]:
        if not isinstance(path, str) or path not in self.modules:
            raise malformed(place, "its module is not in `modules`")
        if path not in self.stacks:
            words = path.split(".") if path else []
            owners = [".".join(words[:count]) for count in range(len(words) + 1)]
            self.stacks[path] = {owner: (owner, self.modules[owner]) for owner in owners if owner in self.modules}
        return self.stacks[path]


def _read_marks(value: Any, place: str) -> tuple[Provenance, ...]:
    wanted = {"clause", "place", "by"}
    for mark in value if isinstance(value, list) else [None]:
        if not isinstance(mark, dict) or mark.keys() != wanted or not all(isinstance(t, str) for t in mark.values()):
            raise malformed(place, "a mark has a clause, a place and who made it")
    return tuple(Provenance(**mark) for mark in value)
