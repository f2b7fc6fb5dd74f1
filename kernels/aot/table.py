"""What a run found, for people (one table, a summary, the list of violations) and as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from surgery.kernels.aot.resources import INSTRUCTIONS
from surgery.kernels.aot.survey import Row

WIDE = 200


def show(rows: Sequence[Row], triton: str, console: Console) -> None:
    """The table and a line for each architecture."""
    table = Table(title=f"kernels compiled ahead, Triton {triton}", title_justify="left", box=None, pad_edge=False)
    for name in ("kernel", "compilation", "arch"):
        table.add_column(name, no_wrap=True)
    for name in ("registers", "spilled", "shared", *INSTRUCTIONS, "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        style = "red" if row.faults else None
        table.add_row(row.entry.kernel, escape(row.entry.name), row.entry.arch, *_figures(row), style=style)
    console.print(table)
    for line in summary(rows):
        console.print(line, highlight=False)


def _figures(row: Row) -> list[str]:
    used = row.used
    if row.entry.fault or used.error:
        return ["—"] * (4 + len(INSTRUCTIONS))
    counts = [str(used.instructions.get(name) or "") for name in INSTRUCTIONS]
    return [str(used.registers), str(used.spill_bytes), str(used.shared), *counts, f"{used.seconds:.1f}"]


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for each architecture: how many compiled, the most of each resource, seconds of compiling."""
    of_arch = defaultdict(list)
    for row in rows:
        of_arch[row.entry.arch].append(row)
    return [_summary(arch, each) for arch, each in of_arch.items()]


def _summary(arch: str, rows: list[Row]) -> str:
    compiled = [row.used for row in rows if not row.entry.fault and not row.used.error]
    kernels = len({row.entry.kernel for row in rows})
    spilled = sum(used.spill_bytes > 0 for used in compiled)
    most = f"at most {max((u.registers for u in compiled), default=0)} registers"
    shared = f"{max((u.shared for u in compiled), default=0)} bytes of shared memory"
    fresh = sum(not row.cached for row in rows)
    faulty = sum(bool(row.faults) for row in rows)
    return (
        f"{arch}: {len(compiled)} of {len(rows)} compiled ({fresh} now), {kernels} kernels, {spilled} spill, "
        f"{most}, {shared}, {faulty} with violations"
    )


def complaints(rows: Sequence[Row]) -> list[str]:
    """A line for each violation, by file."""
    return [f"{row.entry.file}.py: {row.entry.title}: {fault}" for row in rows for fault in row.faults]


def document(rows: Sequence[Row], triton: str) -> dict[str, Any]:
    """The run as one JSON document."""
    return {
        "format": "surgery.aot/1",
        "triton": triton,
        "rows": [
            {
                "kernel": row.entry.kernel,
                "compilation": row.entry.name,
                "arch": row.entry.arch,
                **row.used.to_json(),
                "cached": row.cached,
                "violations": list(row.faults),
            }
            for row in rows
        ],
        "violations": complaints(rows),
    }
