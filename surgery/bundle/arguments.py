"""One argument of a node, as JSON and back.

%name         a node                    1, 1.5, true, null    themselves
[..]          a list                    {"tuple": [..]}       {"slice": [start, stop, step]}
{"string": "tanh"}    {"float": "inf"}  {"dtype": "bfloat16"} {"layout": "strided"}
{"memory_format": "contiguous_format"}  {"device": "model"}   where the model is, or {"device": "cpu"}
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from surgery.bundle.faults import UNSTORABLE, malformed
from surgery.diagnostics import BundleError

HOME = "model"
DEPTH = 8
LONG = 2**63
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
TORCH_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
DEVICE_KINDS = frozenset({"cpu", "cuda", "mps", "xpu", "hpu", "npu", "meta"})


def torch_constants(kind: str) -> dict[str, Any]:
    """The constants of a kind by short name: `float32` → torch.float32."""
    wanted = TORCH_KINDS[kind]
    return {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, wanted)}


CONSTANTS = {kind: torch_constants(kind) for kind in TORCH_KINDS}


def write_argument(value: Any, home: torch.device, place: str) -> Any:
    """JSON for one argument. `home` is the device the model is on. Raises BundleError for what has no JSON."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, list):
        return [write_argument(item, home, place) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [write_argument(item, home, place) for item in value]}
    return _write_tagged(value, home, place)


def _write_tagged(value: Any, home: torch.device, place: str) -> dict[str, Any]:
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [write_argument(item, home, place) for item in parts]}
    if type(value) is str:
        return {"string": value}
    if isinstance(value, torch.device):
        return {"device": HOME if same_device(value, home) else str(value)}
    for kind, wanted in TORCH_KINDS.items():
        if isinstance(value, wanted):
            return {kind: str(value).removeprefix("torch.")}
    raise BundleError(
        f"{place}: an argument of type `{type(value).__name__}` cannot be written",
        code=UNSTORABLE,
        help="arguments may be nodes, numbers, strings, dtypes, devices, layouts, lists and None; "
        "make it an input or a buffer of the model",
    )


def same_device(one: torch.device, other: torch.device) -> bool:
    """`cuda` without a number is the same place as `cuda:0`."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def read_argument(value: Any, nodes: Mapping[str, Node], home: torch.device, place: str, depth: int = 0) -> Any:
    """The argument that JSON describes; `nodes` are those read so far. Raises BundleError."""
    if depth > DEPTH:
        raise malformed(place, f"arguments are nested deeper than {DEPTH}")
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if not -LONG <= value < LONG:
            raise malformed(place, "an integer does not fit in 64 bits")
        return value
    if isinstance(value, str):
        return _read_node(value, nodes, place)
    if isinstance(value, list):
        return [read_argument(item, nodes, home, place, depth + 1) for item in value]
    return _read_tagged(value, nodes, home, place, depth)


def _read_node(value: str, nodes: Mapping[str, Node], place: str) -> Node:
    if not value.startswith("%"):
        raise malformed(place, f'`{value[:60]}` is no argument: nodes are written "%name", strings {{"string": ..}}')
    if value[1:] not in nodes:
        raise malformed(place, f"`{value[:60]}` is not an earlier node")
    return nodes[value[1:]]


def _read_tagged(value: dict, nodes: Mapping[str, Node], home: torch.device, place: str, depth: int) -> Any:
    if len(value) != 1:
        raise malformed(place, "an argument object has one key")
    ((kind, content),) = value.items()
    if kind in ("tuple", "slice"):
        items = content if isinstance(content, list) else None
        if items is None or (kind == "slice" and len(items) != 3):
            raise malformed(place, f"`{kind}` wants a list" + (" of three" if kind == "slice" else ""))
        parts = tuple(read_argument(item, nodes, home, place, depth + 1) for item in items)
        return parts if kind == "tuple" else slice(*parts)
    if not isinstance(content, str):
        raise malformed(place, f"`{kind[:60]}` wants a string")
    if kind == "string":
        return content
    if kind == "float" and content in NOT_FINITE:
        return NOT_FINITE[content]
    if kind == "device":
        return home if content == HOME else read_device(content, place)
    if kind in CONSTANTS and content in CONSTANTS[kind]:
        return CONSTANTS[kind][content]
    raise malformed(place, f"unknown {kind[:60]} `{content[:60]}`")


def read_device(text: Any, place: str) -> torch.device:
    """A device by name, e.g. `cpu` or `cuda:1`. Raises BundleError."""
    kind, _, index = str(text).partition(":")
    if kind not in DEVICE_KINDS or (index and not (index.isascii() and index.isdigit() and len(index) <= 3)):
        raise malformed(place, f"unknown device `{str(text)[:60]}`")
    return torch.device(kind, int(index)) if index else torch.device(kind)
