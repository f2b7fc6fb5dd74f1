"""`python -m surgery.kernels.tuning TABLE`: measure a table's candidates on this GPU and write the fastest.

Without a GPU, `--dry-run --arch sm90` lists the candidates and what they would use. Exit codes: 0 done, 1 nothing could
be measured, 2 usage.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.survey import Row
from surgery.kernels.tuning.candidates import neighbours
from surgery.kernels.tuning.case import NothingToTune, cases
from surgery.kernels.tuning.pick import ARCHITECTURES, TABLES, Config, architecture, shipped
from surgery.kernels.tuning.tables import as_json, write
from surgery.kernels.tuning.tune import Measure, Survey, Trial, best, milliseconds, refusal, surveyor, together, tune


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line()
    asked = parser.parse_args(arguments)
    path = TABLES / f"{asked.table}.json"
    if not path.exists():
        parser.error(
            f"no table {asked.table}: there are {', '.join(sorted(each.stem for each in TABLES.glob('*.json')))}"
        )
    there = torch.cuda.is_available()
    arch = asked.arch or (architecture(torch.device("cuda")) if there else "sm90")
    if not asked.dry_run and not there:
        parser.error("no GPU here to measure on: --dry-run lists the candidates and what they would use")
    if not asked.dry_run and arch != architecture(torch.device("cuda")):
        parser.error(f"this GPU is {architecture(torch.device('cuda'))}, not {arch}")
    with Pool(asked.jobs) as pool:
        survey = surveyor(pool, asked.table, arch)
        if asked.dry_run:
            return dry_run(asked, arch, survey)
        try:
            return tuned(asked, arch, survey)
        except NothingToTune as nothing:
            parser.error(str(nothing))


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m surgery.kernels.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("table", help="a table of tuning/configs, as block_attention")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="default: the GPU's; sm90 without one")
    parser.add_argument("--dry-run", action="store_true", help="list candidates and what they use; measure nothing")
    parser.add_argument("--out", type=Path, help="write there instead of over the shipped table")
    parser.add_argument("--limit", type=int, help="at most so many candidates a row")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compiling processes")
    return parser


def dry_run(asked: argparse.Namespace, arch: str, survey: Survey) -> int:
    """Print every candidate of every row, and what it would use or why it is dropped."""
    console = Console(soft_wrap=True)
    for row in shipped(asked.table, arch):
        console.print(f"{row.dtype} dim {row.dim} {escape(row.tile)}", style="bold", highlight=False)
        configs = neighbours(row, arch)[: asked.limit]
        for config, rows in zip(configs, together(survey, configs, asked.jobs)):
            console.print(f"  {escape(said(config))}: {escape(foreseen(rows))}", highlight=False)
    return 0


def foreseen(rows: Sequence[Row]) -> str:
    if reason := refusal(rows):
        return f"dropped, {reason}"
    used = [row.used for row in rows]
    return f"{max(each.registers for each in used)} registers, {max(each.shared for each in used)} bytes shared"


def tuned(asked: argparse.Namespace, arch: str, survey: Survey, measure: Measure = milliseconds) -> int:
    """Measure, print each trial as it comes, write the table."""
    console = Console(soft_wrap=True)
    offered = [case._replace(candidates=case.candidates[: asked.limit]) for case in cases(asked.table, cuda())]
    winners = {}
    for case, trials in groupby(tune(offered, survey, measure, asked.jobs), key=lambda trial: trial.case):
        console.print(f"{case.dtype} dim {case.dim} {escape(case.tile)}", style="bold", highlight=False)
        seen = [report(trial, console) for trial in trials]
        if chosen := best(seen):
            winners[case.dtype, case.dim, case.tile] = chosen
            console.print(f"  → {escape(said(chosen))}", highlight=False)
    if not winners:
        console.print("nothing could be measured: the table stays as it is")
        return 1
    source = TABLES / f"{asked.table}.json"
    out = asked.out or source
    write(out, merged(json.loads(source.read_text(encoding="utf-8")), arch, winners, circumstances()))
    console.print(f"wrote {out}: {len(winners)} rows of {arch}", highlight=False)
    return 0


def cuda() -> torch.device:
    return torch.device("cuda")


def report(trial: Trial, console: Console) -> Trial:
    came = f"{trial.milliseconds:.4f} ms" if trial.milliseconds is not None else f"dropped, {trial.refused}"
    console.print(f"  {escape(said(trial.config))}: {escape(came)}", highlight=False)
    return trial


def said(config: Config) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in config.blocks.items())
    return f"{sizes} warps={config.num_warps} stages={config.num_stages}"


def merged(table: dict[str, Any], arch: str, winners: dict[tuple, Config], how: dict[str, Any]) -> dict[str, Any]:
    """The table with the winners in their rows' places, and how they were measured; other architectures as they were."""
    rows = [as_json(winners.get((row["dtype"], row["dim"], row["tile"]), Config(**row))) for row in table[arch]]
    return {**table, arch: rows, "measured": {**table.get("measured", {}), arch: how}}


def circumstances() -> dict[str, Any]:
    import triton

    driver = torch.version.hip or torch.version.cuda
    return {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "toolkit": driver},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "surgery.kernels.tuning", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(main())
