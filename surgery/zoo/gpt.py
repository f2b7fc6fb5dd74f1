"""A plain decoder: RMS norms before each part, rotary positions, ReLU² in the feed-forward, a tied embedding."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rotary(nn.Module):
    """Turns pairs of coordinates (i, i + size/2) of queries and keys by angles that grow with the position.

    [B, heads, T, size] -> the same. No table limits T.
    """

    def __init__(self, size: int, base: float):
        super().__init__()
        frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def tables(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, size] for tokens [B, T]."""
        places = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        angles = torch.outer(places, self.frequencies.float()).repeat(1, 2)
        return angles.cos(), angles.sin()


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    beside = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cosines.to(x.dtype) + beside * sines.to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention: [B, T, width] -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection(x).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turned(q, cosines, sines), turned(k, cosines, sines)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Most of its hidden values are exactly zero: ReLU, then the square."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cosines, sines)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Reads tokens, says what may come next: input_ids [B, T] int64 -> logits [B, T, vocabulary]."""

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int = 64,
        depth: int = 4,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        base: float = 10_000.0,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.rotary = Rotary(width // heads, base)
        self.blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio)) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.initialise()

    def initialise(self) -> None:
        """N(0, .02) for the embedding, N(0, 1/inputs) for what reads the stream; what writes to it starts at zero."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if name.endswith(("o_proj", "down")):
                    nn.init.zeros_(module.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        cosines, sines = self.rotary.tables(input_ids)
        for block in self.blocks:
            x = block(x, cosines, sines)
        return F.linear(self.norm(x), self.embedding.weight)
