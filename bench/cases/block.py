"""Attention over blocks, chosen for each head among those that causal attention sees, against dense and FlexAttention."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.operators.block_attention import block_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.harness import Case, Options, Scene

HEADS = 8
DENSITIES = (1.0, 0.51, 0.27, 0.13, 0.06, 0.03)
"""Shares of all blocks: 1 is every pair, without a causal mask; 0.51 is about all that is causal."""

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
ACCEPTANCE = (4096, 64, 128, torch.float32)


@dataclass(frozen=True)
class Problem:
    """Inputs of one size, and which blocks each head keeps: the diagonal, and a share of those before it."""

    q: Tensor
    k: Tensor
    v: Tensor
    keep: Tensor  # bool [H, R, R]
    density: float
    block: int

    @classmethod
    def random(cls, size: int, dim: int, block: int, dtype: torch.dtype, density: float, device: str) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, HEADS, size, dim, generator=generator).to(device, dtype) for _ in range(3))
        keep = chosen(-(-size // block), density, generator).to(device)
        return cls(q, k, v, keep, density, block)

    @property
    def causal(self) -> bool:
        return self.density < 1

    def blocks(self) -> Blocks:
        size = self.q.shape[2]
        return Blocks.from_table(self.keep, size, size, (self.block, self.block), causal=self.causal)


def chosen(rows: int, density: float, generator: torch.Generator) -> Tensor:
    """bool [H, rows, rows]: about that share of all blocks; below 1, the diagonal and random ones before it."""
    if density == 1:
        return torch.ones(HEADS, rows, rows, dtype=torch.bool)
    before = rows * (rows - 1) / 2
    share = max(density * rows * rows - rows, 0) / before
    return (torch.rand(HEADS, rows, rows, generator=generator) < share).tril_(-1) | torch.eye(rows, dtype=torch.bool)


def title(kind: str, size: int, dim: int, block: int, dtype: torch.dtype, density: float) -> str:
    return f"{kind} density={density * 100:g}% S={size} H={HEADS} D={dim} block={block} {NAMES[dtype]}"


def attention(problem: Problem, blocks: Blocks) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Ours and dense attention as functions of q, k and v."""
    causal = problem.causal

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return {
        "ours": lambda q, k, v: block_attention(q, k, v, blocks),
        "sdpa": dense,
        "sdpa-compiled": torch.compile(dense, dynamic=False),
    }


def flex(problem: Problem, blocks: Blocks) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention over the same blocks: whole ones whole, the diagonal by a causal mask function."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    given = blocks.to_block_mask()
    lists = given.kv_num_blocks, given.kv_indices, given.full_kv_num_blocks, given.full_kv_indices
    shape = {"BLOCK_SIZE": blocks.block, "seq_lengths": (blocks.queries, blocks.keys)}
    mask = BlockMask.from_kv_blocks(*lists, mask_mod=lambda b, h, i, j: i >= j, **shape)
    run = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: run(q, k, v, block_mask=mask)


def training(function: Callable[[Tensor, Tensor, Tensor], Tensor], problem: Problem) -> Callable[[], tuple]:
    """Forward and gradients."""

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (problem.q, problem.k, problem.v)]
            return torch.autograd.grad(function(*inputs), inputs, problem.v)

    return run


def scene(problem: Problem, asked: Options, backward: bool) -> Scene:
    """One row. FlexAttention has no backward on a CPU."""
    start = time.perf_counter()
    blocks = problem.blocks()
    build_ms = (time.perf_counter() - start) * 1e3
    functions = attention(problem, blocks)
    if asked.wants("flex-compiled") and not (backward and asked.device == "cpu"):
        functions["flex-compiled"] = flex(problem, blocks)
    inputs = problem.q, problem.k, problem.v
    candidates = {
        name: training(function, problem) if backward else lambda function=function: function(*inputs)
        for name, function in functions.items()
    }
    row = case(problem, blocks, build_ms, tuple(candidates)[1:], backward)
    return Scene(row.name, candidates, (row,))


def case(problem: Problem, blocks: Blocks, build_ms: float, peers: tuple[str, ...], backward: bool) -> Case:
    """Two products of D per kept pair forward, five more backward; q, k, v and out once, and three times with gradients."""
    size, dim = problem.q.shape[2:]
    pairs = blocks.kept * HEADS // blocks.patterns
    flops = (14 if backward else 4) * dim * pairs
    moved = (12 if backward else 4) * problem.q.numel() * problem.q.element_size()
    facts = {
        "dtype": NAMES[problem.q.dtype],
        "density": problem.density,
        "S": size,
        "H": HEADS,
        "D": dim,
        "block": problem.block,
        "pairs": pairs,
    }
    kind = "block-backward" if backward else "block"
    name = title(kind, size, dim, problem.block, problem.q.dtype, problem.density)
    label = f"{problem.density:.0%} of blocks" + (", forward and backward" if backward else "")
    return Case(name, label, "ours", peers, facts, flops, moved, build_ms)


def cells(quick: bool) -> Iterator[tuple[int, int, int, torch.dtype, float, bool]]:
    """(S, D, block, dtype, density, with backward)."""
    if quick:
        yield *ACCEPTANCE, 0.13, False
        yield *ACCEPTANCE, 0.13, True
        yield *ACCEPTANCE, 0.51, False
        return
    for dtype in NAMES:
        for size in (1024, 4096):
            for dim in (64, 128):
                for block in (128, 64):
                    for density in DENSITIES:
                        if round(density * -(-size // block)) >= 1:
                            yield size, dim, block, dtype, density, False
                    yield size, dim, block, dtype, 0.13, True


def scenes(asked: Options) -> Iterator[Scene]:
    for size, dim, block, dtype, density, backward in cells(asked.quick):
        if asked.only in title("block-backward" if backward else "block", size, dim, block, dtype, density):
            torch.compiler.reset()
            yield scene(Problem.random(size, dim, block, dtype, density, asked.device), asked, backward)
