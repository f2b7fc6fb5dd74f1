"""One node as an expression: `x + h0_proj`, `h0_qkv.view(B, 16, 3, 4, 12)`, `sdpa(q, k, v, is_causal=True)`."""

import re
from collections.abc import Callable, Mapping

import torch
from torch._ops import OpOverload
from torch.fx import Node

from surgery.bundle.value import Value
from surgery.inspection.ops import INFIX, METHODS, PREFIX, QUIET, op_name
from surgery.inspection.values import GraphValues, dtype_name

END = 2**63 - 1


class Expressions:
    """Writes nodes with the names of a listing.

    `name_of` says how a node is called where it is read.
    """

    def __init__(self, name_of: Callable[[Node, str], str], values: GraphValues):
        self.name_of = name_of
        self.values = values

    def write(self, node: Node, heading: str = "") -> str:
        """The right-hand side of a node's line, under the heading of a module."""
        name = op_name(node.target)
        args = self._arguments(node)
        texts = [(key, self._value(value, heading)) for key, value in args]
        first = texts[0][1] if texts else ""
        if name in INFIX and len(texts) >= 2 and all(key == "alpha" for key, _ in texts[2:]):
            return self._infix(name, texts)
        if name in PREFIX and len(texts) == 1:
            return PREFIX[name] + first
        if name == "unsqueeze":
            return self._unsqueeze(first, node)
        if name == "index":
            items = (":" if item is None else self._value(item, heading) for item in args[1][1])
            return f"{first}[{', '.join(items)}]"
        if name in INDEXED:
            return INDEXED[name](first, [text for _, text in texts[1:]], args)
        if name == "to":
            return f"{first}.to({self._value(self._target_dtype(node), heading)})"
        if name in METHODS and isinstance(args[0][1], Node):
            return f"{first}.{name}({self._call(node, texts, args, 1)})"
        return f"{name}({self._call(node, texts, args, 0)})"

    def _arguments(self, node: Node) -> list[tuple[str, object]]:
        """Argument names and values, without those left at their default and those that say nothing."""
        if not isinstance(node.target, OpOverload):
            return [("", value) for value in node.args] + list(node.kwargs.items())
        declared = node.target._schema.arguments
        given = [(arg.name, value) for arg, value in zip(declared, node.args, strict=False)]
        given += list(node.kwargs.items())
        defaults = {arg.name: arg.default_value for arg in declared if arg.has_default_value()}
        return [
            (key, value)
            for position, (key, value) in enumerate(given)
            if key not in QUIET and not (position and _is_default(key, value, defaults))
        ]

    def _infix(self, name: str, texts: list[tuple[str, str]]) -> str:
        (_, left), (_, right), *rest = texts
        alpha = dict(rest).get("alpha")
        return f"{left} {INFIX[name]} {f'{alpha} * ' if alpha else ''}{right}"

    def _call(self, node: Node, texts: list[tuple[str, str]], args: list[tuple[str, object]], start: int) -> str:
        """Tensors and whole numbers by position as long as none was left out; flags, fractions and words by name."""
        if start and op_name(node.target) in SPREAD and len(args) == 2 and isinstance(args[1][1], list | tuple):
            return texts[1][1][1:-1]
        order = _declared(node)
        parts: list[str] = []
        for (key, value), (_, text) in list(zip(args, texts, strict=True))[start:]:
            position = start + len(parts)
            by_place = order.get(key) == position and not (position and isinstance(value, bool | float | str))
            parts.append(text if not key or by_place else f"{key}={text}")
        return ", ".join(parts)

    def write_value(self, value: object) -> str:
        """An argument of the output: nodes by name, nested as they are; a single one stands alone."""
        if isinstance(value, list | tuple):
            return ", ".join(self.write_value(item) for item in value)
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{key}": {self.write_value(item)}' for key, item in value.items()) + "}"
        return self._value(value, "")

    def _target_dtype(self, node: Node) -> object:
        """What `to` makes of its input: a dtype, else a device."""
        value = self.values.of(node)
        if isinstance(value, Value):
            return value.dtype
        given = [*node.args[1:], *node.kwargs.values()]
        return next((item for item in given if isinstance(item, torch.dtype)), given[0] if given else None)

    def _unsqueeze(self, first: str, node: Node) -> str:
        """Axes added one after the other are written as one index: `x[:, None, None]`."""
        value, dim = self.values.of(node), node.args[1]
        if not isinstance(value, Value) or not isinstance(dim, int):
            return _brackets(first, dim, "None") if dim != 0 else f"{first}[None]"
        found = ADDED_AXES.fullmatch(first)
        source, axes = (found["source"], found["axes"].split(", ")) if found else (first, [])
        axes += [":"] * (len(value.shape) - 1 - len(axes))
        axes.insert(dim % len(value.shape), "None")
        while axes[-1] == ":":
            axes.pop()
        return f"{source}[{', '.join(axes)}]"

    def _value(self, value: object, heading: str) -> str:
        if isinstance(value, Node):
            return self.values.size(value) or self.name_of(value, heading)
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._value(item, heading) for item in value) + "]"
        if isinstance(value, slice):
            return ":".join("" if item is None else str(item) for item in (value.start, value.stop))
        if isinstance(value, torch.dtype):
            return dtype_name(value)
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, str):
            return f'"{value}"'
        return str(value).removeprefix("torch.")


def _is_default(key: str, value: object, defaults: Mapping[str, object]) -> bool:
    return (
        key in defaults
        and not isinstance(value, Node)
        and type(value) is type(defaults[key])
        and value == defaults[key]
    )


def _declared(node: Node) -> dict[str, int]:
    if isinstance(node.target, OpOverload):
        declared = node.target._schema.arguments
        return {argument.name: index for index, argument in enumerate(declared) if not argument.kwarg_only}
    return {}


def _brackets(source: str, dim: object, inner: str) -> str:
    if not isinstance(dim, int):
        return f"{source}[dim {dim}: {inner}]"
    before = ":, " * dim if dim >= 0 else "..., "
    after = ", :" * (-dim - 1) if dim < 0 else ""
    return f"{source}[{before}{inner}{after}]"


def _slice(first: str, texts: list[str], args: list[tuple[str, object]]) -> str:
    given = dict(zip([key for key, _ in args[1:]], texts, strict=True))
    values = dict(args)
    start = given.get("start", "") if values.get("start") not in (0, None) else ""
    stop = "" if values.get("end") in (None, END) else given.get("end", "")
    step = f":{given['step']}" if "step" in given else ""
    return _brackets(first, values.get("dim", 0), f"{start}:{stop}{step}")


def _select(first: str, texts: list[str], args: list[tuple[str, object]]) -> str:
    return _brackets(first, dict(args).get("dim", 0), texts[-1])


def _getitem(first: str, texts: list[str], args: list[tuple[str, object]]) -> str:
    return f"{first}[{texts[0]}]"


ADDED_AXES = re.compile(r"(?P<source>[\w.]+)\[(?P<axes>(?::, )*None(?:, (?::|None))*)\]")
INDEXED = {"slice": _slice, "select": _select, "getitem": _getitem}
SPREAD = frozenset(["view", "reshape", "expand", "permute", "repeat"])
