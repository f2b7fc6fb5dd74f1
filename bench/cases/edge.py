"""Attention over single random edges, a list per head, against dense attention and what else computes the same."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from surgery.kernels.layouts.edges import Edges
from surgery.kernels.operators.edge_attention import edge_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from bench.harness import Case, Options, Scene

HEADS = 8
DENSITIES = (0.001, 0.004, 0.01, 0.02, 0.05)
"""Shares of the causal pairs."""

BACKWARD = " forward+backward"

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Problem:
    """Inputs of one size; `mask` bool [H, S, S] keeps a share of the causal pairs, drawn for each head."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    density: float

    @classmethod
    def random(cls, size: int, dim: int, dtype: torch.dtype, density: float, device: str) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, HEADS, size, dim, generator=generator).to(device, dtype) for _ in range(3))
        drawn = [torch.rand(size, size, generator=generator).lt(density).tril_() for _ in range(HEADS)]
        return cls(q, k, v, torch.stack(drawn).to(device), density)

    @property
    def name(self) -> str:
        return title(self.q.shape[2], self.q.shape[3], self.q.dtype, self.density)


def title(size: int, dim: int, dtype: torch.dtype, density: float) -> str:
    return f"edge density={density * 100:g}% S={size} H={HEADS} D={dim} {NAMES[dtype]}"


def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def dense(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Causal attention over all pairs, and under the mask as a tensor."""
    q, k, v = problem.q, problem.k, problem.v
    causal = compiled(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True))
    masked = compiled(lambda q, k, v, mask: scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
        "sdpa-compiled": lambda: causal(q, k, v),
        "dense-compiled": lambda: masked(q, k, v, problem.mask[None]),
    }


def flex(problem: Problem) -> Callable[[], Tensor]:
    """FlexAttention whose mask function reads the same mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask, size = problem.mask, problem.q.shape[2]
    blocks = create_block_mask(lambda b, h, i, j: mask[h, i, j], None, HEADS, size, size, device=problem.q.device)
    run = compiled(flex_attention)
    return lambda: run(problem.q, problem.k, problem.v, block_mask=blocks)


def csr(problem: Problem) -> Callable[[], Tensor]:
    """What torch's own sparse matrices make of it, a head at a time: sampled product, softmax, product."""
    q, k, v = problem.q[0], problem.k[0], problem.v[0]
    scale = q.shape[-1] ** -0.5
    empty = [mask.to(q.dtype).to_sparse_csr().mul_(0) for mask in problem.mask]
    lengths = [each.crow_indices().diff() for each in empty]
    rows = [torch.repeat_interleave(each) for each in lengths]

    def head(number: int) -> Tensor:
        scores = torch.sparse.sampled_addmm(empty[number], q[number], k[number].T, beta=0, alpha=scale)
        peak = torch.segment_reduce(scores.values(), "max", lengths=lengths[number], unsafe=True)
        weights = (scores.values() - peak[rows[number]]).exp_()
        total = torch.segment_reduce(weights, "sum", lengths=lengths[number], unsafe=True)
        picked = torch.sparse_csr_tensor(scores.crow_indices(), scores.col_indices(), weights, scores.shape)
        return picked @ v[number] / total.clamp_min(1e-30)[:, None]

    return lambda: torch.stack([head(number) for number in range(HEADS)])


def backward(function: Callable[[Tensor, Tensor, Tensor], Tensor], problem: Problem) -> Callable[[], tuple]:
    """Forward and gradients."""

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (problem.q, problem.k, problem.v)]
            return torch.autograd.grad(function(*inputs), inputs, problem.v)

    return run


def built(problem: Problem) -> tuple[Edges, float]:
    """The lists, and the milliseconds that making them from the mask took."""
    start = time.perf_counter()
    edges = Edges.from_mask(problem.mask)
    return edges, (time.perf_counter() - start) * 1e3


def case(problem: Problem, edges: Edges, build_ms: float, peers: tuple[str, ...], run: Callable, suffix: str) -> Case:
    with FlopCounterMode(display=False) as counted:
        run()
    tensors = (problem.q, problem.k, problem.v, problem.q)
    moved = sum(each.numel() * each.element_size() for each in tensors) * (3 if suffix else 1)
    moved += sum(each.numel() * each.element_size() for each in edges.tensors()[: 5 if suffix else 2])
    facts = {
        "dtype": NAMES[problem.q.dtype],
        "density": problem.density,
        "S": problem.q.shape[2],
        "H": HEADS,
        "D": problem.q.shape[3],
        "edges": edges.idx.numel(),
    }
    label = f"{problem.density:.1%} of causal edges{suffix}"
    flops = counted.get_total_flops()
    return Case(problem.name + suffix, label, "ours", peers, facts, flops, moved, build_ms)


def forward_scene(problem: Problem, asked: Options) -> Scene:
    edges, build_ms = built(problem)
    candidates = {"ours": lambda: edge_attention(problem.q, problem.k, problem.v, edges), **dense(problem)}
    if asked.wants("flex-compiled"):
        candidates["flex-compiled"] = flex(problem)
    if asked.wants("csr") and problem.q.dtype == torch.float32:
        candidates["csr"] = csr(problem)
    row = case(problem, edges, build_ms, tuple(candidates)[1:], candidates["ours"], "")
    return Scene(problem.name, candidates, (row,))


def backward_scene(problem: Problem) -> Scene:
    """FlexAttention has no backward on a CPU, and torch's sampled product none at all."""
    edges, build_ms = built(problem)
    causal = compiled(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True))
    candidates = {
        "ours": backward(lambda q, k, v: edge_attention(q, k, v, edges), problem),
        "sdpa": backward(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), problem),
        "sdpa-compiled": backward(causal, problem),
    }
    row = case(problem, edges, build_ms, tuple(candidates)[1:], candidates["ours"], BACKWARD)
    return Scene(problem.name + BACKWARD, candidates, (row,))


def problems(quick: bool) -> Iterator[tuple[int, int, torch.dtype, float]]:
    if quick:
        yield from ((4096, 64, torch.float32, density) for density in (0.004, 0.02))
        return
    for dtype in NAMES:
        for size in (1024, 4096):
            for dim in (64, 128):
                yield from ((size, dim, dtype, density) for density in DENSITIES)


def scenes(asked: Options) -> Iterator[Scene]:
    for size, dim, dtype, density in problems(asked.quick):
        name = title(size, dim, dtype, density)
        if asked.only in name:
            torch.compiler.reset()
            yield forward_scene(Problem.random(size, dim, dtype, density, asked.device), asked)
        if density == 0.004 and not asked.quick and asked.only in name + BACKWARD:
            torch.compiler.reset()
            yield backward_scene(Problem.random(size, dim, dtype, density, asked.device))
