"""What the zoo's decoders know of held-out text: `python -m bench.language [--json FILE] [--rows N]`.

Of the shipped weights, in float32. `tasks-gpt`: cross-entropy and accuracy of every task, beside the entropy of an even
choice among the right answers, which no model goes below. `code-gpt`: nats per token and bits per byte over every
held-out module of this interpreter's standard library, in windows of 512 tokens that do not overlap, and for comparison
over as many windows of the modules that train.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import machine

BATCH = 16


@torch.no_grad()
def losses(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats [N, T], 0 where nothing is scored, and the likeliest tokens [N, T]."""
    found, likely = [], []
    for rows, wanted in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        logits = module(rows)
        nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=-100)
        found.append(nats.reshape(wanted.shape))
        likely.append(logits.argmax(-1))
    return torch.cat(found), torch.cat(likely)


def tasks(rows: int) -> dict[str, dict[str, float]]:
    """Each task's loss, floor and accuracy over `rows` held-out rows of all, seed 1."""
    from surgery.models import open_model
    from surgery.zoo.tasks import TASKS
    from surgery.zoo.tasks import rows as drawn

    data = drawn(rows, 1, held_out=True)
    nats, likely = losses(open_model("zoo:tasks-gpt").module, data.inputs, data.targets)
    first, last = data.right.unbind(-1)
    right = (first <= likely) & (likely <= last)
    found = {}
    for index, name in enumerate(TASKS):
        scored = (data.targets >= 0) & (data.task == index)[:, None]
        found[name] = {
            "scored": int(scored.sum()),
            "loss": float(nats[scored].mean()),
            "floor": float((last - first + 1)[scored].double().log().mean()),
            "accuracy": float(right[scored].double().mean()),
        }
    return found


def code(most: int | None) -> dict[str, dict[str, float]]:
    """Held-out loss, and that of training modules over as many windows; `most` windows of each, None: every one."""
    from surgery.models import open_model
    from surgery.zoo import stdlib

    module = open_model("zoo:code-gpt").module
    found: dict[str, dict[str, float]] = {}
    for name, held_out in (("held out", True), ("training", False)):
        rows = windows(stdlib.stream(held_out=held_out).tokens, stdlib.CONTEXT)
        most = min(most or len(rows), len(rows))
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]
        nats, _ = losses(module, rows[:, :-1], rows[:, 1:])
        size = sum(len(text.encode()) for text in stdlib.tokenizer().decode_batch(rows[:, 1:].tolist()))
        found[name] = {
            "windows": len(rows),
            "tokens": nats.numel(),
            "bytes": size,
            "nats_per_token": float(nats.double().mean()),
            "bits_per_byte": float(nats.double().sum()) / math.log(2) / size,
        }
    return found


def windows(tokens: Tensor, length: int) -> Tensor:
    """[N, length + 1]: rows of `length` tokens one behind the other, each with the token that follows it."""
    return tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.language", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write every figure to FILE")
    parser.add_argument("--rows", type=int, default=4096, help="held-out rows of the tasks (4,096)")
    parser.add_argument("--windows", type=int, help="windows of code of each side (every held-out one)")
    args = parser.parse_args(arguments)
    document: dict[str, Any] = {
        "machine": machine("cpu"),
        "tasks-gpt": tasks(args.rows),
        "code-gpt": code(args.windows),
    }
    for model in ("tasks-gpt", "code-gpt"):
        for name, figures in document[model].items():
            told = ", ".join(f"{key} {value:,.5g}" for key, value in figures.items())
            print(f"zoo:{model}  {name:<9} {told}")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
