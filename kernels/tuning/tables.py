"""Tables on disk: what one may hold, and how one is written, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.kernels.tuning.pick import ARCHITECTURES, INTERPRETER, Config

from surgery.atomic import write_text

ARCHS = (*ARCHITECTURES, INTERPRETER)
DTYPES = ("fp32", "fp16", "bf16")
FIELDS = {"dtype", "dim", "tile", "blocks", "num_warps", "num_stages", "options"}
OPTIONAL = {"options"}
# A table keyed by how much a mask keeps would compile anew for every mask.
FORBIDDEN = ("nnz", "density")
HIP_STAGES = 2
MEASURED = {"gpu", "versions", "date", "command"}


def faults(read: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a table, each with its architecture and row."""
    found = [f"{arch}: not an architecture ({', '.join(ARCHS)})" for arch in read if arch not in (*ARCHS, "measured")]
    found += [f"{arch}: no rows" for arch in ARCHS if not read.get(arch)]
    for arch in ARCHS:
        rows = read.get(arch, [])
        for number, row in enumerate(rows):
            found += [f"{arch}[{number}]: {fault}" for fault in row_faults(row, arch)]
        if not found:
            found += _doubled(arch, rows)
    for arch, said in read.get("measured", {}).items():
        if arch not in ARCHITECTURES or set(said) != MEASURED:
            found.append(f"measured.{arch}: expected {', '.join(sorted(MEASURED))} of an architecture")
    return found


def row_faults(row: Mapping[str, Any], arch: str) -> list[str]:
    """All that is wrong with one row."""
    if wrong := sorted((FIELDS - OPTIONAL - set(row)) | (set(row) - FIELDS)):
        return [f"missing or unknown: {', '.join(wrong)}"]
    names = [*row["blocks"], *row.get("options", {})]
    checks = {
        f"dtype {row['dtype']}": row["dtype"] in DTYPES,
        f"dim {row['dim']} is neither a power of two nor a multiple of 16": _serves(row["dim"]),
        "blocks are not positive powers of two": all(_power(size) for size in row["blocks"].values()),
        f"num_warps {row['num_warps']}": _power(row["num_warps"]) and row["num_warps"] <= 16,
        f"num_stages {row['num_stages']}": 1 <= row["num_stages"] <= (HIP_STAGES if arch == "gfx942" else 8),
        "keyed by how much a mask keeps": not any(word in name.lower() for name in names for word in FORBIDDEN),
    }
    return [fault for fault, holds in checks.items() if not holds]


def write(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table, a row a line, atomically. Raises ValueError with every fault if it has any."""
    if wrong := faults(table):
        raise ValueError(f"{path.name}: " + "; ".join(wrong))
    parts = [f" {json.dumps(arch)}: [\n{_rows(table[arch])}\n ]" for arch in ARCHS if arch in table]
    if table.get("measured"):
        parts.append(f' "measured": {json.dumps(table["measured"])}')
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def as_json(row: Config) -> dict[str, Any]:
    """A row as tables hold it."""
    return {
        "dtype": row.dtype,
        "dim": row.dim,
        "tile": row.tile,
        "blocks": dict(row.blocks),
        "num_warps": row.num_warps,
        "num_stages": row.num_stages,
        "options": dict(row.options),
    }


def _rows(rows: list[Mapping[str, Any]]) -> str:
    return ",\n".join(f"  {json.dumps(row)}" for row in rows)


def _doubled(arch: str, rows: list[Mapping[str, Any]]) -> list[str]:
    places = [(row["dtype"], row["dim"], row["tile"]) for row in rows]
    return [f"{arch}: two rows for {' '.join(map(str, each))}" for each in set(places) if places.count(each) > 1]


def _power(number: int) -> bool:
    return isinstance(number, int) and number > 0 and not number & (number - 1)


def _serves(dim: int) -> bool:
    return _power(dim) or (isinstance(dim, int) and dim > 0 and dim % 16 == 0)
