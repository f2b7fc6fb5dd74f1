"""`resources.json`: what every shipped compilation used when it was last recorded, under one version of Triton.

Compared only under that version. Spills and shared memory must be the same to the byte, registers at most `SLACK`
more: shared memory is Triton's own arithmetic, registers are a heuristic's outcome that any edit nudges, and a step of
16 is where occupancy may change.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery.kernels.aot.survey import Row

from surgery.atomic import write_text

PATH = Path(__file__).parent / "resources.json"
SLACK = 16
COMMAND = "python -m surgery.kernels.aot --record"
CHECK = "python -m surgery.kernels.aot --check"


def read(path: Path = PATH) -> dict[str, Any]:
    """The record; an empty one, of no version, where there is none."""
    if not path.exists():
        return {"triton": None, "used": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write(rows: Iterable[Row], triton: str, path: Path = PATH) -> None:
    """Record: one line a compilation, sorted, so that a change reads as a diff. Whole or not at all."""
    lines = [f"  {json.dumps(row.entry.title)}: {json.dumps(_said(row))}" for row in rows]
    head = json.dumps({"command": COMMAND, "triton": triton, "columns": ["registers", "spill_bytes", "shared"]})[1:-1]
    text = "{" + head + ', "used": {\n' + ",\n".join(sorted(lines)) + "\n}}\n"
    write_text(path, text)


def differences(rows: Iterable[Row], record: dict[str, Any], whole: bool) -> list[str]:
    """What does not fit the record; with `whole`, also what it holds that no longer ships."""
    ours = {row.entry.title: _said(row) for row in rows if row.entry.key}
    recorded = record["used"]
    found = [f"{title}: {said}" for title, used in ours.items() if (said := _differs(used, recorded.get(title)))]
    gone = [f"{title}: recorded, but ships no more" for title in recorded if whole and title not in ours]
    return [*found, *gone]


def nearest(record: dict[str, Any]) -> set[str]:
    """Of each kernel and architecture, the compilations that were recorded with the most registers and shared memory.

    Where a change breaks a rule, it most likely breaks it there first.
    """
    found = {}
    for title, (registers, _, shared) in record["used"].items():
        kernel = title.partition(" [")[0]
        for measure, used in (("registers", registers), ("shared", shared)):
            found[kernel, measure] = max(found.get((kernel, measure), (-1, "")), (used, title))
    return {title for _, title in found.values()}


def _said(row: Row) -> list[int]:
    return [row.used.registers, row.used.spill_bytes, row.used.shared]


def _differs(used: list[int], recorded: list[int] | None) -> str | None:
    if recorded is None:
        return "not recorded"
    for name, now, then, slack in zip(("registers", "spill bytes", "shared memory"), used, recorded, (SLACK, 0, 0)):
        if now > then + slack or (not slack and now != then):
            return f"{name} {now}, recorded {then}"
    return None
