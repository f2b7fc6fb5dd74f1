"""How long, how fast and how precisely a graph is trained."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError

PRECISIONS = ("float32", "bfloat16")
DECAYS = ("cosine", "linear", "none")
SHARDS = ("none", "fsdp")
WARMUP = 0.05
EVALUATIONS = 20
LEAST_RATE = 0.01
ELSEWHERE = ("checkpoint", "checkpoint_every", "shard")
"""Settings that change where a training is kept or run, not what comes of it."""


@dataclass(frozen=True)
class Settings:
    """AdamW; the rate rises for `warmup` steps (None: 5 % of them) and falls along `decay` to 1 % of itself.

    batch             rows of one step in all: its processes, and in each `accumulate` passes, share them out
    precision         "bfloat16" computes a float32 model under autocast; a model of 16 bits computes in its own dtype,
                      and its weights are trained as float32 copies
    lora              the rank of adapters that are trained instead of the weights; 0 trains all weights
    data, distill     weights of the data's loss and of the divergence from the teacher; the loss is their weighted sum
    shard             among several processes: "none" copies the model to each (DDP), "fsdp" shares it out (FSDP2)
    checkpoint        the folder that resuming goes on from, written every `checkpoint_every` steps; None: none is kept
    evaluate_every    None: twenty times in all

    Raises SurgeryError (S814) for what cannot be trained with.
    """

    steps: int
    rate: float = 1e-4
    warmup: int | None = None
    decay: str = "cosine"
    batch: int = 16
    accumulate: int = 1
    precision: str = "float32"
    weight_decay: float = 0.0
    gradient_norm: float = 1.0
    lora: int = 0
    seed: int = 0
    data: float = 1.0
    distill: float = 0.0
    shard: str = "none"
    checkpoint: Path | None = None
    checkpoint_every: int = 250
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        fault = next(self._faults(), None)
        if fault:
            help = "`surgery explain heal` tells the settings"
            raise SurgeryError(f"cannot train with {fault}", code="S814", help=help)

    def _faults(self) -> Iterator[str]:
        for name in ("steps", "batch", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: it is 1 or more"
        for name, known in (("precision", PRECISIONS), ("decay", DECAYS), ("shard", SHARDS)):
            if getattr(self, name) not in known:
                yield f"{name}={getattr(self, name)}: it is {' or '.join(known)}"
        if not (math.isfinite(self.rate) and self.rate > 0):
            yield f"rate={self.rate}: it is greater than 0"
        for name in ("weight_decay", "gradient_norm", "lora", "data", "distill", "seed"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)}: it is 0 or more"
        if not self.data + self.distill > 0:
            yield "data=0 and distill=0: nothing is left to learn from"
        if self.batch < self.accumulate:
            yield f"accumulate={self.accumulate}: a step has {self.batch} rows"

    @property
    def evaluations(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_every or max(1, self.steps // EVALUATIONS)

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0 .. `steps` - 1."""
        warmup = math.ceil(WARMUP * self.steps) if self.warmup is None else self.warmup
        if step < warmup:
            return self.rate * (step + 1) / warmup
        if self.decay == "none":
            return self.rate
        done = (step - warmup) / max(1, self.steps - warmup)
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.rate * max(LEAST_RATE, left)

    def identity(self) -> dict[str, Any]:
        """What decides what comes of a training, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ELSEWHERE}
