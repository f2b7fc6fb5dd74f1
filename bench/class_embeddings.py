"""Class-embedding pruning against its alternatives, in quality: `python -m bench.class_embeddings [--quick] [--json]`.

Every row removes the same share of the conditional vector's coordinates in another way and measures samples of the
same seeds: accuracy under the zoo's fixed classifier and Fréchet distance in its feature space, mean over seeds. The
Fréchet ratio to the dense model is taken seed by seed. Compare only at an equal number of samples.
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from bench.harness import machine

SHARES = ("38%", "66%", "80%", "90%")
WAYS = {
    "default (greedy + refit)": "prune tail {share} of class embeddings",
    "greedy + least squares": "prune tail {share} of class embeddings by greedy compensate=least-squares",
    "random + least squares": "prune random {share} of class embeddings compensate=least-squares seed={seed}",
    "per-vector |c| tail": "prune tail {share} of class embeddings by magnitude scope=per-vector",
    "per-vector |c| head": "prune head {share} of class embeddings by magnitude scope=per-vector",
    "random, plain": "prune random {share} of class embeddings compensate=none seed={seed}",
    "greedy + match": "prune tail {share} of class embeddings compensate=match",
}
COSTLY = "greedy + match"
"""A way that trains for minutes: measured only where `--ways` names it."""
"""What a person would write for each way; `per-vector |c| tail` is the paper's (arXiv:2602.21596)."""


@dataclass(frozen=True)
class Run:
    """One measurement: a way, a share, a seed, and what the classifier made of the samples."""

    way: str
    share: str
    seed: int
    accuracy: float
    frechet: float
    ratio: float


def runs(model: str, samples: int, seeds: range, shares: tuple[str, ...], ways: tuple[str, ...]) -> Iterator[Run]:
    """Dense once per seed, then every way at every share; what no seed enters is made once."""
    from surgery.anatomy import inspect
    from surgery.models import open_model
    from surgery.models.data import open_data
    from surgery.verify.quality import DiffusionQuality

    opened = open_model(model)
    data = open_data(opened.default_data or "digits", opened)
    anatomy = inspect(opened.module, opened.example_inputs)
    made = cache(lambda clause: rewritten(opened, anatomy, clause))
    for seed in seeds:
        meter = DiffusionQuality(opened, data, samples=samples, seed=seed)
        dense = meter.measure(opened.module).metrics
        yield Run("dense", "0%", seed, dense["accuracy"], dense["frechet"], 1.0)
        for share in shares:
            for way in ways:
                found = meter.measure(made(WAYS[way].format(share=share, seed=seed))).metrics
                yield Run(way, share, seed, found["accuracy"], found["frechet"], found["frechet"] / dense["frechet"])


def rewritten(model: Any, anatomy: Any, clause: str) -> Any:
    """The module a clause makes of a model, unmeasured."""
    from surgery.session import prepare
    from surgery.session.rewrite import rewrite

    return rewrite(prepare(clause, model, anatomy=anatomy))


def summarised(found: list[Run], model: str) -> list[dict[str, Any]]:
    """A row per way and share: means over seeds and the largest Fréchet ratio."""
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        rows.setdefault((run.share, run.way), []).append(run)
    return [
        {
            "case": f"{model} {share} {way}",
            "way": way,
            "share": share,
            "accuracy": round(mean(run.accuracy for run in group), 4),
            "frechet": round(mean(run.frechet for run in group), 3),
            "frechet_ratio": round(mean(run.ratio for run in group), 3),
            "worst_ratio": round(max(run.ratio for run in group), 3),
            "seeds": len(group),
        }
        for (share, way), group in rows.items()
    ]


def table(rows: list[dict[str, Any]], title: str) -> None:
    """Shares across, ways down: accuracy and Fréchet ratio."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shares = list(dict.fromkeys(row["share"] for row in rows if row["way"] != "dense"))
    dense = next(row for row in rows if row["way"] == "dense")
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column(f"dense: {dense['accuracy']:.1%}, Fréchet {dense['frechet']:.2f}")
    for share in shares:
        shown.add_column(f"{share} removed", justify="right")
    for way in dict.fromkeys(row["way"] for row in rows if row["way"] != "dense"):
        cells = {
            row["share"]: f"{row['accuracy']:.1%}  {row['frechet_ratio']:.2f}x" for row in rows if row["way"] == way
        }
        shown.add_row(way, *(cells[share] for share in shares))
    Console().print(shown)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo:digits-dit", help="a class-conditional diffusion model of digits")
    parser.add_argument("--samples", type=int, help="per measurement (default 2000)")
    parser.add_argument("--seeds", type=int, help="how many (default 3)")
    parser.add_argument("--shares", nargs="+", default=SHARES, metavar="SHARE", help="default all four")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=[way for way in WAYS if way != COSTLY],
        metavar="WAY",
        help="of: " + ", ".join(WAYS),
    )
    parser.add_argument("--quick", action="store_true", help="200 samples, one seed, 66%% alone")
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON document")
    asked = parser.parse_args(argv)
    samples = asked.samples or (200 if asked.quick else 2000)
    seeds = range(asked.seeds or (1 if asked.quick else 3))
    found = []
    for run in runs(asked.model, samples, seeds, SHARES[1:2] if asked.quick else asked.shares, asked.ways):
        found.append(run)
        print(f"seed {run.seed}  {run.share:>4}  {run.way:<26} {run.accuracy:.3f}  {run.ratio:.3f}x", file=sys.stderr)
    rows = summarised(found, asked.model)
    if asked.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        table(rows, f"{asked.model}, {samples} samples × {len(seeds)} seeds: accuracy, Fréchet distance over dense")
    if asked.out:
        _write(asked.out, rows, samples)
    return 0


def _write(path: Path, rows: list[dict[str, Any]], samples: int) -> None:
    document = {
        "format": "surgery.bench/1",
        "name": "class_embeddings",
        "command": shlex.join(["python", "-m", "bench.class_embeddings", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "samples": samples,
        **machine("cpu"),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
