"""Edges of attention against loss: `python -m bench.sparse_attention [--model zoo:tasks-gpt] [--quick] [--json]`.

Per tolerance and seed the model is post-trained with gates, to as few edges as keep the loss within the tolerance, and
measured on held-out rows of its own data: the share of possible edges that is kept, loss and accuracy before and
after, and the controls at the same number of edges, which train nothing (random edges; the largest weights of the
dense model's own attention). A tolerance is in nats (`0.01`) or of the dense loss (`1%`). With `--save` each result is
saved, loaded, compared to the bit, and writes 32 tokens, with keys and values kept and without.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from bench.harness import machine

TOLERANCES = ("0", "0.01", "0.05", "0.2")
QUICK = "steps=20 batch=16"
CLAUSE = "sparsify {share}{target} via gates tolerance={tolerance} seed={seed} {options}"


def runs(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per tolerance and seed."""
    for tolerance in asked.tolerances:
        for seed in asked.seeds:
            yield run(asked, tolerance, seed)


def joined(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows that other runs left, each with the command that measured it."""
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        yield from ({"command": document["command"]} | row for row in document["rows"])


def run(asked: argparse.Namespace, tolerance: str, seed: int) -> dict[str, Any]:
    """Post-train, measure, and say what came of it."""
    import surgery
    from surgery.diagnostics import UnprovenError

    started = time.monotonic()
    spec = spec_of(asked, tolerance, seed)
    options = {"timing": False, "controls": not asked.no_controls, "progress": told, "device": asked.device}
    again: dict[str, Any] = {}
    try:
        result = surgery.compile(None, spec, **options)
        report = result.report
        if asked.save:
            again = reloaded(result, asked.save / f"{tolerance}-{seed}")
    except UnprovenError as error:
        report = error.report
    print(file=sys.stderr)
    found = {"case": f"{asked.model} tolerance={tolerance} seed={seed}", "tolerance": tolerance, "seed": seed}
    return found | measured(report) | again | {"seconds": round(time.monotonic() - started), "spec": spec}


def reloaded(result: Any, folder: Path) -> dict[str, Any]:
    """Whether what was saved computes the same bits, and writes the same with a cache as without."""
    import surgery
    import torch
    from surgery.anatomy.placement import device_of
    from torch.utils import _pytree as pytree

    module = surgery.load(result.save(folder, overwrite=True)).to(device_of(result.module))
    with torch.no_grad():
        ours, theirs = (pytree.tree_leaves(each(**result.example_inputs)) for each in (result.module, module))
    pairs = [pair for pair in zip(ours, theirs, strict=True) if isinstance(pair[0], torch.Tensor)]
    prompt = result.example_inputs["input_ids"][:, :8]
    written = [module.generate(prompt, max_new_tokens=32, use_cache=use) for use in (True, False)]
    return {
        "reloaded_same_bits": all(torch.equal(*pair) for pair in pairs),
        "generated": written[0].shape[1] - prompt.shape[1],
        "generated_as_without_cache": torch.equal(*written),
    }


def spec_of(asked: argparse.Namespace, tolerance: str, seed: int) -> str:
    """What a person would write."""
    share = f"{asked.share} " if asked.share else ""
    clause = CLAUSE.format(target=asked.target, share=share, tolerance=tolerance, seed=seed, options=asked.options)
    data = [f"data {asked.data}"] if asked.data else []
    return "\n".join([f"model {asked.model}", *data, clause.strip()]) + "\n"


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row, out of a report."""
    from surgery.report import edges

    quality = {row["metric"]: row for row in report["quality"]}
    training = next(found for found in report["findings"] if found["kind"] == "training")
    loss, accuracy = quality["loss"], quality.get("accuracy")
    return {
        "kept": 1 - edges.share_off(report),
        "dense": {"loss": loss["before"]} | ({"accuracy": accuracy["before"]} if accuracy else {}),
        "sparse": {"loss": loss["after"]} | ({"accuracy": accuracy["after"]} if accuracy else {}),
        "rise": loss["after"] - loss["before"],
        "rise_share": loss["after"] / loss["before"] - 1,
        "target": training["target"],
        "best_step": training["best_step"],
        "state": training["state"],
        "controls": [{"name": row["name"], **plain(row["metrics"])} for row in report["controls"]],
        "proven": all(row["holds"] for row in report["parity"]),
    }


def plain(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("loss", "accuracy") if name in metrics}


def told(stage: str, done: int, total: int) -> None:
    if total and (done % max(1, total // 20) == 0 or done == total):
        print(f"\r{stage[:150]} {done}/{total}\x1b[K", end="", file=sys.stderr, flush=True)


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per tolerance: means over seeds, and the range of what is kept."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["tolerance"], []).append(row)
    return [
        {
            "tolerance": tolerance,
            "kept": mean(row["kept"] for row in group),
            "least": min(row["kept"] for row in group),
            "most": max(row["kept"] for row in group),
            "dense": mean(row["dense"]["loss"] for row in group),
            "loss": mean(row["sparse"]["loss"] for row in group),
            "accuracy": _mean(row["sparse"].get("accuracy") for row in group),
            "controls": _control_means(group),
            "seeds": len(group),
        }
        for tolerance, group in groups.items()
    ]


def table(rows: list[dict[str, Any]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    controls = list(dict.fromkeys(name for row in rows for name in row["controls"]))
    for name in ("tolerance", "edges kept", "range", "dense loss", "loss", "accuracy", *controls):
        shown.add_column(name, justify="right")
    for row in rows:
        accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        values = [f"{row['kept']:.3%}", f"{row['least']:.3%}..{row['most']:.3%}", f"{row['dense']:.4f}", f"{row['loss']:.4f}"]
        shown.add_row(row["tolerance"], *values, accuracy, *(f"{row['controls'][name]:.3f}" for name in controls))
    Console().print(shown)


def plot(document: dict[str, Any], path: Path) -> None:
    """Loss against edges kept, a dot per run, the controls at the same number of edges, the dense model as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "surgery", "svg.fonttype": "none"}
    rows = document["rows"]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for tolerance in dict.fromkeys(row["tolerance"] for row in rows):
        own = [row for row in rows if row["tolerance"] == tolerance]
        axes.plot([100 * row["kept"] for row in own], [row["sparse"]["loss"] for row in own], "o", label=f"gates, tolerance {tolerance}")
    for name, marker in zip(dict.fromkeys(each["name"] for row in rows for each in row["controls"]), "xs^vd*+<>", strict=False):
        places = [(100 * row["kept"], each["loss"]) for row in rows for each in row["controls"] if each["name"] == name]
        axes.plot(*zip(*places, strict=True), marker, color="0.45", markersize=5, label=name, fillstyle="none")
    axes.axhline(mean(row["dense"]["loss"] for row in rows), color="0.3", linewidth=1, label="dense")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"edges kept, of those possible\n{document['model']}, {document['device']}", fontsize=9)
    axes.set_ylabel("held-out loss, nats")
    axes.grid(color="0.92")
    figure.legend(fontsize=7.5, loc="outside right upper")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    rows = []
    for row in joined(asked.join) if asked.join else runs(asked):
        rows.append(row)
        if asked.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        if asked.out:  # behind each run: what was measured is kept where a later one is interrupted
            write(asked, rows)
    if not asked.json:
        table(summarised(rows), f"{asked.model}: edges kept and held-out loss, means over seeds")
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sparse_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo:tasks-gpt")
    parser.add_argument("--data", help="instead of the model's own, with its options: `tasks samples=4096`")
    parser.add_argument("--target", default="attention", help="a part of it, as in `attention in layers 2..5`")
    parser.add_argument("--share", help="how many edges shall go; without it as many as the tolerance allows")
    parser.add_argument("--tolerances", type=_listed, default=TOLERANCES, metavar="T,T", help=f"default {','.join(TOLERANCES)}")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in _listed(text)], default=[0, 1, 2], metavar="N,N")
    parser.add_argument("--options", default="", help="more of the clause, such as `steps=4000 batch=64 lr=1e-3`")
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--device", help="where models are put: `cuda`; without it the CPU")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="save, load, compare and let it write")
    parser.add_argument("--quick", action="store_true", help="one tolerance, one seed, 20 steps: a look at whether it runs")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="measure nothing: rows of these documents")
    parser.add_argument("--json", action="store_true", help="one JSON line per run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON document, and a plot beside it (.svg)")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.tolerances, asked.seeds, asked.options = asked.tolerances[-1:], asked.seeds[:1], asked.options or QUICK
    return asked


def write(asked: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    document = {
        "format": "surgery.bench/1",
        "name": "sparse_attention",
        "model": asked.model,
        "command": shlex.join(["python", "-m", "bench.sparse_attention", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **machine(asked.device or "cpu"),
        "rows": rows,
        "summary": summarised(rows),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(document, asked.out.with_suffix(".svg"))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _control_means(group: list[dict[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(each["name"] for row in group for each in row["controls"])
    return {
        name: mean(each["loss"] for row in group for each in row["controls"] if each["name"] == name) for name in names
    }


if __name__ == "__main__":
    raise SystemExit(main())
