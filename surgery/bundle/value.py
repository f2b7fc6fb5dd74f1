"""What a node produces: dtype and shape, with symbolic sizes as text, e.g. `float32[s0, 16, 96]`."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from surgery.bundle.arguments import CONSTANTS
from surgery.bundle.faults import malformed

KEY = "value"
SIZE = re.compile(r"[A-Za-z0-9_+\-*/%(), .<>=&|~^]{1,1000}")


@dataclass(frozen=True)
class Value:
    """A tensor's dtype and shape; a size that depends on the input is text such as `s0` or `2*s0`."""

    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


Values = Value | tuple["Values | None", ...]


class Symbols:
    """Names symbolic sizes s0, s1, … in order of appearance, so that equal graphs read alike."""

    def __init__(self) -> None:
        self.names: dict[Any, Any] = {}

    def size(self, size: int | torch.SymInt) -> int | str:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression.is_Integer:
            return int(expression)
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self.names:
                self.names[symbol] = type(symbol)(f"s{len(self.names)}", integer=True)
        return str(expression.xreplace(self.names))


def value_of(node: Node, symbols: Symbols | None = None) -> Values | None:
    """What a node produces, of a captured or a loaded graph; None where it is not a tensor."""
    if "val" in node.meta:
        return _describe(node.meta["val"], symbols or Symbols())
    return node.meta.get(KEY)


def _describe(value: Any, symbols: Symbols) -> Values | None:
    if isinstance(value, torch.Tensor):
        return Value(value.dtype, tuple(symbols.size(size) for size in value.shape))
    if isinstance(value, list | tuple):
        return tuple(_describe(item, symbols) for item in value)
    return None


def write_value(value: Values | None) -> Any:
    """JSON of a value."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return [write_value(item) for item in value]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}


def read_value(value: Any, place: str, depth: int = 0) -> Values | None:
    """The value that JSON describes. Raises BundleError. Nothing of it is ever evaluated."""
    if value is None:
        return None
    if isinstance(value, list) and depth < 4:
        return tuple(read_value(item, place, depth + 1) for item in value)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape"}:
        raise malformed(place, "a value has a dtype and a shape")
    return Value(read_dtype(value["dtype"], place), read_shape(value["shape"], place))


def read_dtype(text: Any, place: str) -> torch.dtype:
    """A dtype by its short name. Raises BundleError."""
    if not isinstance(text, str) or text not in CONSTANTS["dtype"]:
        raise malformed(place, f"unknown dtype `{str(text)[:60]}`")
    return CONSTANTS["dtype"][text]


def read_shape(sizes: Any, place: str) -> tuple[int | str, ...]:
    """A shape: whole numbers from 0, or expressions as text. Raises BundleError."""
    if not isinstance(sizes, list) or not all(_is_size(size) for size in sizes):
        raise malformed(place, "a shape is a list of sizes")
    return tuple(sizes)


def _is_size(size: Any) -> bool:
    if isinstance(size, str):
        return SIZE.fullmatch(size) is not None
    return type(size) is int and size >= 0
