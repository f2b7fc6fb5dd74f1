"""`python -m surgery.kernels.aot`: compile every kernel and shipped config without a GPU, and hold what they use.

Exit codes: 0 every rule holds, 1 one does not (or something did not compile), 2 usage.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from surgery.kernels.aot import golden, manifest, table
from surgery.kernels.aot.environment import EnvironmentFailed, python_with
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.survey import Row, surveyed
from surgery.kernels.aot.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line()
    asked = parser.parse_args(arguments)
    errors = Console(stderr=True)
    if asked.record and (asked.kernel or asked.arch != list(TARGETS) or asked.triton):
        parser.error(
            "--record records the whole shelf under the installed Triton: leave out --arch, --kernel, --triton"
        )
    try:
        python = python_with(asked.triton) if asked.triton else sys.executable
    except EnvironmentFailed as failed:
        errors.print(str(failed), style="red", markup=False, highlight=False)
        return 2
    with Pool(asked.jobs, python, asked.limit) as pool:
        triton = pool.ask({"do": "hello"}).get("triton", "missing")
        rows = survey(pool, asked, errors)
    show(rows, asked, triton)
    if not rows:
        parser.error(f"no kernel named {asked.kernel} is on the shelf")
    complaints = table.complaints(rows)
    if asked.check:
        complaints += against_record(rows, asked, triton, errors)
    for line in complaints:
        errors.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if asked.record and not complaints:
        golden.write(rows, triton)
    return 1 if complaints else 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m surgery.kernels.aot", description=__doc__.splitlines()[0])
    known = ",".join(TARGETS)
    parser.add_argument("--arch", type=architectures, default=list(TARGETS), help=f"of {known}; all without it")
    parser.add_argument("--kernel", help="only this file, or this `file:function`")
    parser.add_argument("--json", action="store_true", help="one document on standard output instead of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one compilation may take")
    parser.add_argument("--triton", help="under this version, installed beside once (as 3.6.0)")
    parser.add_argument("--fresh", action="store_true", help="compile again what is in the cache")
    parser.add_argument("--check", action="store_true", help="compare with resources.json too")
    parser.add_argument("--record", action="store_true", help="write resources.json, if every rule holds")
    parser.add_argument("--shelf", type=Path, default=manifest.SHELF, help="another folder of kernel files")
    return parser


def architectures(said: str) -> list[str]:
    names = said.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        raise argparse.ArgumentTypeError(f"unknown architecture {', '.join(unknown)}: there are {', '.join(TARGETS)}")
    return names


def survey(pool: Pool, asked: argparse.Namespace, errors: Console) -> list[Row]:
    """Compile what was asked for, with a bar on a terminal."""
    file = asked.kernel.partition(":")[0] if asked.kernel else None
    files = [name for name in manifest.files(asked.shelf) if file in (None, name)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("listing", total=None)
        return surveyed(
            pool,
            asked.arch,
            files,
            asked.shelf,
            keep=lambda entry: asked.kernel in (None, file) or entry.kernel == asked.kernel or bool(entry.fault),
            progress=lambda done, of, name: progress.update(bar, completed=done, total=of, description=name[:80]),
            fresh=asked.fresh,
        )


def show(rows: list[Row], asked: argparse.Namespace, triton: str) -> None:
    if asked.json:
        print(json.dumps(table.document(rows, triton), indent=1))
        return
    console = Console()
    table.show(rows, triton, console if console.is_terminal else Console(width=table.WIDE))


def against_record(rows: list[Row], asked: argparse.Namespace, triton: str, errors: Console) -> list[str]:
    """What differs from resources.json; figures of another Triton are not compared, and that is said."""
    record = golden.read()
    if record["triton"] != triton:
        errors.print(f"resources.json was recorded under Triton {record['triton']}, this is {triton}: not compared")
        return []
    whole = asked.kernel is None and asked.arch == list(TARGETS)
    said = golden.differences(rows, record, whole)
    return [*said, f"if that is meant: {golden.COMMAND}"] if said else []


if __name__ == "__main__":
    sys.exit(main())
