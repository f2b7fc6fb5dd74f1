"""Small captured modules for the tests of bundles."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

WIDTH = 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Tied embeddings, a persistent buffer, a constant, device constants: what a bundle must carry."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "attn": Attention(), "up": nn.Linear(WIDTH, WIDTH)})
            for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("cache", torch.ones(WIDTH), persistent=False)

    def forward(self, ids: Tensor, shift: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed(ids) * self.scale + self.embed(place) + shift[:, None] * self.cache + torch.tensor([2.0])
        for block in self.blocks:
            x = x + block["attn"](block["norm"](x))
            x = x + F.gelu(block["up"](x), approximate="tanh")
        return self.head(x).masked_fill(ids[..., None] == 3, float("-inf"))


def capture(module: nn.Module, *args, **kwargs) -> GraphModule:
    """As surgery captures: torch.export with a dynamic batch."""

    def batch(value):
        return {0: Dim.DYNAMIC} if isinstance(value, Tensor) and value.dim() else None

    shapes = torch.utils._pytree.tree_map(batch, (args, kwargs))
    dynamic = shapes[1] if kwargs else shapes[0]
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic, strict=False)
    return program.module(check_guards=False)


def inputs(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 20, (batch, 5), generator=generator)
    return {"ids": ids, "shift": torch.randn(batch, WIDTH, generator=generator)}


def _bits(value):
    return value.detach().contiguous().flatten().view(torch.uint8) if isinstance(value, Tensor) else value


def same(one, other) -> bool:
    """Bit for bit, whatever the outputs nest in."""
    left, right = torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other)
    return len(left) == len(right) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
        if isinstance(a, Tensor)
        else a == b
        for a, b in zip(left, right, strict=True)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
