"""Small graphs and real text to train them on."""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.anatomy.capture import capture
from surgery.targets.calibration import Calibration, any_length

LENGTH = 24
BYTES = 128


@cache
def text() -> Tensor:
    """A module of the standard library, as ASCII [n]."""
    return torch.tensor([byte for byte in Path(argparse.__file__).read_bytes() if byte < BYTES])


def rows(count: int, seed: int = 0) -> Tensor:
    """Windows of the text [count, LENGTH]."""
    starts = torch.randint(len(text()) - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text()[start : start + LENGTH] for start in starts.tolist()])


class Reader(nn.Module):
    """Tokens [B, T] → logits [B, T, V]: an embedding that is also the head, and a layer that sees the last token."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.table = nn.Embedding(BYTES, width)
        self.mix, self.up, self.down = nn.Linear(2 * width, width), nn.Linear(width, 32), nn.Linear(32, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, input_ids):
        x = self.table(input_ids)
        before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        x = x + self.mix(torch.cat([x, before], -1))
        x = x + self.scale * self.down(nn.functional.gelu(self.up(x)))
        return self.head(self.norm(x))


def graph(kind: type[nn.Module] | None = None, dtype: torch.dtype = torch.float32) -> GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (kind or Reader)().to(dtype).eval()
    return capture(model, {"input_ids": rows(2)})


def calibration(graph_module: GraphModule, count: int = 80, **given: Any) -> Calibration:
    inputs = {"input_ids": rows(count)} | given
    return Calibration(inputs, dict.fromkeys(inputs), "causal-lm", free=any_length(graph_module), batch=8)


def values(graph_module: GraphModule) -> dict[str, Tensor]:
    """A copy of every tensor of a graph."""
    return {name: value.detach().clone() for name, value in graph_module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
