"""One new token over chosen blocks of a long cache, against attention over all of it and over a gathered copy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from surgery.kernels.operators.block_decode import block_decode
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.harness import Case, Options, Scene

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 64
KEPT = (0.05, 0.1, 0.25)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Cache:
    """A token's queries and a full cache of one size."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def random(cls, batch: int, size: int, dtype: torch.dtype, device: str) -> "Cache":
        torch.manual_seed(0)
        shapes = (batch, HEADS, 1, DIM), (batch, KV_HEADS, size, DIM), (batch, KV_HEADS, size, DIM)
        return cls(*(torch.randn(shape, device=device).to(dtype) for shape in shapes))

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def size(self) -> int:
        return self.k.shape[2]

    def lists(self, share: float) -> Tensor:
        """Random blocks for each KV head, a share of all: int32 [B, Hkv, N]."""
        blocks = self.size // BLOCK
        drawn = torch.rand(self.batch, KV_HEADS, blocks, device=self.k.device).argsort(2)
        return drawn[..., : round(share * blocks)].sort(2).values.int().contiguous()


def ours(cache: Cache, lists: Tensor) -> Callable[[], Tensor]:
    lengths = torch.full((cache.batch,), cache.size, dtype=torch.int32, device=cache.q.device)
    return lambda: block_decode(cache.q, cache.k, cache.v, lists, lengths, block=BLOCK)


def gathered(cache: Cache, lists: Tensor) -> Callable[[], Tensor]:
    """Copy the listed blocks, whole blocks at a time, then attention over the copy."""
    blocks = cache.size // BLOCK
    rows = torch.arange(cache.batch * KV_HEADS, device=lists.device).view(cache.batch, KV_HEADS, 1) * blocks
    index = (rows + lists).flatten()

    def copied(held: Tensor) -> Tensor:
        picked = held.view(-1, BLOCK * DIM).index_select(0, index)
        return picked.view(cache.batch, KV_HEADS, -1, DIM)

    return lambda: scaled_dot_product_attention(cache.q, copied(cache.k), copied(cache.v), enable_gqa=True)


def scene(cache: Cache, share: float) -> Scene:
    """`every-block` is our kernel when it lists the whole cache: what leaving blocks out gains by itself."""
    lists, dtype = cache.lists(share), NAMES[cache.q.dtype]
    candidates = {
        "block-decode": ours(cache, lists),
        "sdpa": lambda: scaled_dot_product_attention(cache.q, cache.k, cache.v, enable_gqa=True),
        "gather-sdpa": gathered(cache, lists),
        "every-block": ours(cache, cache.lists(1.0)),
    }
    kept, keys = f"kept={share * 100:g}%", lists.numel() * BLOCK
    shape = f"B={cache.batch} S={cache.size} Hq={HEADS} Hkv={KV_HEADS} D={DIM} {dtype}"
    case = Case(
        f"decode {kept} {shape}",
        kept,
        "block-decode",
        ("sdpa", "gather-sdpa", "every-block"),
        facts={"kept": share, "B": cache.batch, "S": cache.size, "D": DIM, "dtype": dtype, "block": BLOCK},
        flops=4 * keys * (HEADS // KV_HEADS) * DIM,
        bytes=2 * keys * DIM * cache.k.element_size(),
    )
    return Scene(f"decode {shape}, blocks of {BLOCK}, {kept}", candidates, (case,))


def scenes(asked: Options) -> Iterator[Scene]:
    """fp32, batch 1 at 8k; without --quick also batch 8, 32k and bf16; both largest in bf16 only.

    `sdpa` copies keys and values for each query head on a CPU: batch 8 at 32k in fp32 would take it 8 GiB.
    """
    sizes = ((1, 8192),) if asked.quick else ((1, 8192), (1, 32768), (8, 8192), (8, 32768))
    for dtype in (torch.float32,) if asked.quick else NAMES:
        for batch, size in sizes if dtype is not torch.float32 else sizes[:3]:
            cache = Cache.random(batch, size, dtype, asked.device)
            for share in KEPT:
                yield scene(cache, share)
