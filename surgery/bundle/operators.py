"""Which operators a bundle may name, and how they are written.

An operator is written `aten.linear.default`, `surgery.NAME.OVERLOAD`, or as one of the few Python functions that
`torch.export` puts between them for sizes (`operator.mul`, `torch.sym_max`).
"""

import builtins
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from surgery.bundle.faults import OPERATOR, UNSTORABLE
from surgery.bundle.unsafe import danger
from surgery.diagnostics import BundleError

NAMESPACES = ("aten", "surgery")
SAME = {"transformers::grouped_mm_fallback": "surgery.grouped_mm.default"}
"""Operators of other packages, and ours that give the same numbers from the same arguments."""
NAME = re.compile(r"([a-z]+)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class PythonOperator:
    """A Python function on sizes, and how many arguments it takes."""

    function: Callable[..., Any]
    least: int
    most: int


def _table() -> dict[str, PythonOperator]:
    binary = "add sub mul floordiv truediv mod pow eq ne lt le gt ge and_ or_ lshift rshift"
    rows = {f"operator.{name}": PythonOperator(getattr(operator, name), 2, 2) for name in binary.split()}
    rows |= {f"operator.{name}": PythonOperator(getattr(operator, name), 1, 1) for name in ("neg", "pos")}
    rows |= {f"math.{name}": PythonOperator(getattr(math, name), 1, 1) for name in ("ceil", "floor", "trunc")}
    symbolic = {"sym_not": 1, "sym_int": 1, "sym_float": 1, "sym_max": 2, "sym_min": 2, "sym_ite": 3}
    rows |= {f"torch.{name}": PythonOperator(getattr(torch, name), count, count) for name, count in symbolic.items()}
    rows["torch.sym_sqrt"] = PythonOperator(torch.sym_sqrt, 1, 1)
    rows["operator.getitem"] = PythonOperator(operator.getitem, 2, 2)
    rows["builtins.round"] = PythonOperator(builtins.round, 1, 2)
    return rows


PYTHON_OPERATORS = _table()
PYTHON_NAMES = {row.function: name for name, row in PYTHON_OPERATORS.items()}


def operator_name(target: Any, place: str) -> str:
    """How the target of a call is written. Raises BundleError for what a bundle does not admit."""
    if isinstance(target, OpOverload):
        plain = f"{target.namespace}.{target._schema.name.partition('::')[2]}.{target._overloadname}"
        name = SAME.get(target._schema.name, plain)
        find_operator(name, place)
        return name
    if isinstance(target, HigherOrderOperator):
        raise BundleError(
            f"{place}: `{target.name()}` runs a graph inside the graph, which a bundle cannot hold",
            code=UNSTORABLE,
            help="take `torch.autocast`, `torch.enable_grad`, `torch.cond` and loops over tensors out of the forward",
        )
    if target not in PYTHON_NAMES:
        raise _refused(place, str(target), "it is not an operator of the `aten` or `surgery` namespaces")
    return PYTHON_NAMES[target]


def find_operator(name: str, place: str) -> OpOverload | PythonOperator:
    """The operator of that name, if it is admitted. Raises BundleError otherwise; nothing is imported by name."""
    if name in PYTHON_OPERATORS:
        return PYTHON_OPERATORS[name]
    parts = NAME.fullmatch(name)
    if not parts or parts[1] not in NAMESPACES:
        raise _refused(place, name, "only operators of the `aten` and `surgery` namespaces are admitted")
    namespace, base, overload = parts.groups()
    if namespace == "aten":
        return _aten(name, base, overload, place)
    found = _registered(namespace, base, overload)
    if found is None:
        _load_kernels()
        found = _registered(namespace, base, overload)
    if found is None:
        raise BundleError(
            f"{place}: operator `{name}` is not registered here",
            code=OPERATOR,
            help="install the package that brings this kernel, or a newer `model-surgery`",
        )
    return found


@cache
def _aten_names() -> frozenset[str]:
    # TorchScript has further `aten` operators outside the dispatcher (`aten::save` writes files): not these.
    return frozenset(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))


def _aten(name: str, base: str, overload: str, place: str) -> OpOverload:
    written = f"aten::{base}" if overload == "default" else f"aten::{base}.{overload}"
    if written not in _aten_names():
        raise _refused(place, name, "this version of torch has no such tensor operator")
    found = getattr(getattr(torch.ops.aten, base), overload)
    reason = danger(found)
    if reason:
        raise _refused(place, name, reason)
    return found


def _registered(namespace: str, base: str, overload: str) -> OpOverload | None:
    packet = getattr(getattr(torch.ops, namespace), base, None)
    if not isinstance(packet, OpOverloadPacket):
        return None
    found = getattr(packet, overload, None)
    return found if isinstance(found, OpOverload) else None


def _load_kernels() -> None:
    """Kernel packages register their operators when imported; they join through `surgery.kernels`."""
    for entry in entry_points(group="surgery.kernels"):
        entry.load()


def _refused(place: str, name: str, reason: str) -> BundleError:
    return BundleError(
        f"{place}: operator `{name}` is refused: {reason}",
        code=OPERATOR,
        help="if the bundle is yours, rewrite that part of the model with public tensor operators; "
        "if it came from someone else, do not trust it",
    )
