"""One of several processes that train together; started by test_processes.py with torchrun's variables."""

import os
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import taught
import torch
from safetensors.torch import save_file
from torch import distributed

from surgery.diagnostics import SurgeryError
from surgery.training.engine import penalized, train
from surgery.training.objective import Constrained, Recovery
from surgery.training.processes import joined, place
from surgery.training.settings import Settings

PLAN = {"steps": 6, "rate": 3e-3, "batch": 8, "evaluate_every": 3, "checkpoint_every": 3}
CASES = {
    "plain": {},
    "parts": {"accumulate": 2},
    "adapters": {"lora": 2},
    "constrained": {},
}


class Gated(torch.nn.Module):
    """A penalty, a scalar parameter, an output the loss does not read, and rows of different lengths."""

    def __init__(self):
        super().__init__()
        self.inner, self.gate = taught.Reader(), torch.nn.Parameter(torch.tensor(2.0))
        self.unread = torch.nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        logits = self.inner(input_ids) * torch.sigmoid(self.gate)
        penalty = torch.sigmoid(self.gate) * attention_mask.sum(1).double().mean()
        return (logits, self.unread(self.inner.table(input_ids))), penalty


@cache
def given():
    mask = (torch.arange(taught.LENGTH) < torch.arange(40)[:, None] % 20 + 4).long()
    torch.manual_seed(0)
    graph = taught.capture(Gated().double().eval(), {"input_ids": taught.rows(2), "attention_mask": mask[:2]})
    return graph, taught.calibration(graph, 40, attention_mask=mask)


def case(name, shard="none", checkpoint=None, seed=0):
    """Train one of CASES in this process's group."""
    graph, data = given()
    settings = Settings(**PLAN, **CASES[name], shard=shard, checkpoint=checkpoint, seed=seed)
    objective = Constrained(target=4.0 + 1e-9 * place()) if name == "constrained" else Recovery()
    return train(graph, data, settings, objective, forward=penalized, whole=("gate",))


def main(out: Path) -> None:
    for shard in ("none", "fsdp"):
        for name in CASES:
            trained = case(name, shard)
            told = {key: torch.tensor([row[key] for row in trained.history]) for key in ("loss", "penalty")}
            save(out / f"{name}-{shard}-{distributed.get_rank()}.safetensors", {**trained.weights, **told})
        case("plain", shard, out / f"kept-{shard}")
        again = case("plain", shard, out / f"kept-{shard}")
        save(out / f"again-{shard}-{distributed.get_rank()}.safetensors", again.weights)
    operated(out)
    try:
        case("plain", seed=distributed.get_rank())
    except SurgeryError as error:
        (out / f"refused-{distributed.get_rank()}").write_text(error.diagnostics[0].message)


def operated(out: Path) -> None:
    """The command line, in the group that is there: each process runs it, the first one saves."""
    from surgery.cli import main as surgery

    spec = "prune 50% of class embeddings by magnitude compensate=none; heal steps=4 lr=1e-2 batch=8"
    (out / "heal.surgery").write_text(f'data tensors:"{out}/rows.safetensors" calibration=32; {spec}')
    given = ["--model", "tiny_model:make", "--no-timing", "--no-controls", "--out", str(out / "out")]
    with open(out / f"told-{place()}", "w") as told, redirect_stdout(told):
        print(surgery(["apply", str(out / "heal.surgery"), *given]))


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


if __name__ == "__main__":
    with joined():
        main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # all is written; on a crowded machine a thread of gloo's now and then aborts Python's own way out
