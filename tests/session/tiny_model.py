"""A conditional network of a few hundred weights, as somebody would hand it to surgery."""

import torch
from torch import nn


class TinyDit(nn.Module):
    """x [N, 6], t [N] in [0, 1), y [N] of 5 classes -> [N, 6]; c = time(t) + table[y] modulates one layer."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))
        self.table = nn.Embedding(5, width)
        self.into, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
        self.norm = nn.LayerNorm(16, elementwise_affine=False)
        self.modulation = nn.Linear(width, 32)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, t, y):
        waves = torch.stack([t.sin(), t.cos(), (2 * t).sin(), (2 * t).cos()], -1)
        c = self.time(waves) + self.table(y)
        shift, scale = self.modulation(nn.functional.silu(c)).chunk(2, -1)
        return self.dropout(self.out(self.norm(self.into(x)) * (1 + scale) + shift))


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network and example inputs, the same at every call; its random state is its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyDit().eval(), inputs(3)


def inputs(batch: int, seed: int = 1) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, 6, generator=chance),
        "t": torch.rand(batch, generator=chance),
        "y": torch.randint(5, (batch,), generator=chance),
    }


def without_inputs() -> nn.Module:
    return make()[0]


def diverged() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """One weight is NaN."""
    model, example = make()
    model.out.weight.data[0, 0] = float("nan")
    return model, example
