"""Your own module, in Python: a hand-written diffusion transformer loses two thirds of its conditional vector."""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import surgery


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c)[:, None].chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class TinyDiT(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3, classes: int = 10):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -9, 16)))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x, t, y):
        angles = t[:, None] * self.frequencies
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.classes(y)
        for block in self.blocks:
            x = block(x, c)
        return x


def main(folder: str) -> None:
    torch.manual_seed(0)
    model = TinyDiT()
    inputs = (torch.randn(2, 16, 48), torch.tensor([10.0, 900.0]), torch.tensor([3, 7]))

    result = surgery.compile(model, "prune tail 66% of class embeddings", example_inputs=inputs, compiled=False)
    print(result.plan.actions[0].before, "->", result.plan.actions[0].after)
    for row in result.report["parity"]:
        print(f"{row['what']} at batch {row['batch']}: {row['max_rel']:.1e} of the largest output, {row['holds']}")

    path = result.save(Path(folder) / "tiny-dit")
    loaded = surgery.load(path)
    print("reload bit-identical:", torch.equal(loaded(*inputs), result.module(*inputs)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
