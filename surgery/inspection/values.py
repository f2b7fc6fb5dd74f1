"""What nodes return, as a person writes it: `f32[B, 16, 48]`; the same for a captured and a loaded graph."""

import re
from collections.abc import Iterable

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from surgery.bundle.value import Symbols, Value, Values, value_of
from surgery.inspection.ops import INFIX, op_name

DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
LETTERS = "BSNMKPQRUVWXYZ"
SYMBOL = re.compile(r"\bs\d+\b")


def dtype_name(dtype: torch.dtype) -> str:
    return DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def shape_text(shape: Iterable[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


class GraphValues:
    """Dtype and shape of every node, symbolic sizes as letters in the order the inputs show them: B is the batch."""

    def __init__(self, graph: Graph):
        symbols = Symbols()
        self._values = {node: value_of(node, symbols) for node in graph.nodes}
        self._letters = self._name(node for node in graph.nodes if node.op == "placeholder")
        self._sizes: dict[Node, str] = {}
        for node in graph.nodes:
            size = self._size(node)
            if size:
                self._sizes[node] = size

    def of(self, node: Node) -> Values | None:
        """Value, a tuple of them, or None where nothing is known."""
        return self._values.get(node)

    def text(self, node: Node) -> str:
        """`f32[B, 16]`, `6 × f32[B, 48]` for a tuple of likes, empty where nothing is known."""
        return self._text(self.of(node))

    def size(self, node: Node) -> str:
        """What a whole number made of sizes is, such as `B` or `B * 16`; empty for anything else."""
        return self._sizes.get(node, "")

    def _name(self, inputs: Iterable[Node]) -> dict[str, str]:
        names: dict[str, str] = {}
        for node in inputs:
            value = self.of(node)
            for size in value.shape if isinstance(value, Value) else ():
                for symbol in SYMBOL.findall(str(size)):
                    names.setdefault(symbol, LETTERS[len(names)] if len(names) < len(LETTERS) else symbol)
        return names

    def _lettered(self, size: int | str) -> str:
        return SYMBOL.sub(lambda found: self._letters.get(found.group(), found.group()), str(size))

    def _text(self, value: Values | None) -> str:
        if isinstance(value, Value):
            return dtype_name(value.dtype) + shape_text(map(self._lettered, value.shape))
        parts = [self._text(item) for item in value or ()]
        if len(parts) > 1 and len(set(parts)) == 1 and parts[0]:
            return f"{len(parts)} × {parts[0]}"
        return ", ".join(part for part in parts if part)

    def _size(self, node: Node) -> str:
        """Read from the graph alone, so that a loaded graph, which has no symbolic numbers, reads alike."""
        if node.op != "call_function":
            return ""
        name = op_name(node.target)
        if name == "sym_size":
            source, axis = self.of(node.args[0]), node.args[1]
            return self._lettered(source.shape[axis]) if isinstance(source, Value) else ""
        if isinstance(node.target, OpOverload) or name not in INFIX or not node.all_input_nodes:
            return ""
        parts = [self.size(part) if isinstance(part, Node) else str(part) for part in node.args]
        return f" {INFIX[name]} ".join(f"({part})" if " " in part else part for part in parts) if all(parts) else ""
