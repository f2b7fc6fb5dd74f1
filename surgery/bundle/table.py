"""The tensor table of `graph.json`: rows as JSON and back."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from surgery.bundle.arguments import read_device
from surgery.bundle.faults import malformed
from surgery.bundle.tensors import KINDS, STORED, Entry, fills
from surgery.bundle.value import read_dtype, read_shape

# Words of a dotted name end up in generated code between double quotes: nothing that could end those.
WORD = re.compile(r"[ !#-\[\]-~]{1,200}")


def write_entry(entry: Entry) -> dict[str, Any]:
    """JSON of one row."""
    if entry.tied:
        return {"kind": entry.kind, "tied": entry.tied}
    row: dict[str, Any] = {"kind": entry.kind, "dtype": str(entry.dtype).removeprefix("torch.")}
    row["shape"] = list(entry.shape)
    if entry.strides:
        row["strides"] = list(entry.strides)
    if entry.kind == "parameter":
        row["requires_grad"] = entry.requires_grad
    if entry.device:
        row["device"] = str(entry.device)
    return row


def read_entries(rows: Any, place: str) -> dict[str, Entry]:
    """The table that JSON describes. Raises BundleError."""
    if not isinstance(rows, dict):
        raise malformed(place, "`tensors` is an object")
    table: dict[str, Entry] = {}
    for name, row in rows.items():
        where = f"{place}: tensor `{name[:80]}`"
        if not all(part.isidentifier() or WORD.fullmatch(part) for part in name.split(".")):
            raise malformed(where, "a tensor's name is dotted words")
        table[name] = _read_entry(row, table, where)
    return table


def _read_entry(row: Any, table: Mapping[str, Entry], where: str) -> Entry:
    if not isinstance(row, dict) or row.get("kind") not in KINDS:
        raise malformed(where, f"its kind is one of {', '.join(KINDS)}")
    if row.keys() == {"kind", "tied"}:
        owner = table.get(row["tied"]) if isinstance(row["tied"], str) else None
        if owner is None or owner.tied or owner.kind != row["kind"]:
            raise malformed(where, "it is tied to no earlier tensor of its kind")
        return replace(owner, tied=row["tied"])
    wanted = {"kind", "dtype", "shape"} | ({"requires_grad"} if row["kind"] == "parameter" else set())
    if row.keys() - {"strides", "device"} != wanted or not isinstance(row.get("requires_grad", False), bool):
        raise malformed(where, f"its keys are {', '.join(sorted(wanted))}")
    dtype, shape = read_dtype(row["dtype"], where), read_shape(row["shape"], where)
    strides = read_shape(row.get("strides", []), where)
    if any(isinstance(size, str) for size in (*shape, *strides)) or (strides and not fills(shape, strides)):
        raise malformed(where, "a stored tensor has fixed sizes, and strides that fill its memory")
    trainable = row.get("requires_grad", False)
    if dtype not in STORED or (trainable and not dtype.is_floating_point):
        raise malformed(where, f"a {row['kind']} cannot have dtype {row['dtype']}")
    device = read_device(row["device"], where) if "device" in row else None
    return Entry(row["kind"], dtype, shape, trainable, "", strides, device)
