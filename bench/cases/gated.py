"""Gated attention: a training step (sampled gates, forward and backward) and evaluation (hard gates at 0.4 % open).

Peers of training: `naive`, the same mathematics in eager PyTorch with queries × keys in memory and autograd over it, and
`naive-compiled`, that under `torch.compile`. They draw uniforms where ours hashes. Peers of evaluation: both again, and
`sdpa`, dense attention without any gate: what is not gated computes less, and may still be slower.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from surgery.kernels.operators.gated_attention import gated_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.harness import Case, Options, Scene

HEADS = 8
TRAIN = (
    (32, 128, 16), (32, 128, 32), (32, 128, 64), (8, 512, 16), (8, 512, 32), (8, 512, 64), (8, 1024, 32), (8, 1024, 64)
)  # fmt: skip
QUICK = ((8, 128, 32), (8, 512, 32))
EVALUATE = ((8, 512, 32), (1, 4096, 64))
HALF_PERCENT = -2.65
"""The bias that leaves 0.4 % of standard normal logits above 0."""


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, hidden: Tensor, sample: bool) -> tuple[Tensor, Tensor]:
    """Gated attention written out: out and expected."""
    s = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    z = s + bias[:, None, None]
    if not sample:
        return (s.softmax(-1) * (z > 0)) @ v, z.sigmoid().sum((-1, -2))
    u = torch.rand_like(z)
    noisy = z + u.log() - (1 - u).log()
    hard, soft = (noisy > 0).to(z.dtype), noisy.sigmoid()
    return (s.softmax(-1) * (hard + soft - soft.detach())) @ v, z.sigmoid().sum((-1, -2))


@dataclass(frozen=True)
class Inputs:
    """Random queries, keys, values [B, H, S, D] and what goes with them; leaves that gradients reach if trained."""

    batch: int
    length: int
    dim: int
    device: str
    trained: bool
    tensors: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, HEADS, self.length, self.dim)
        made = [torch.randn(shape, generator=generator) for _ in range(3)]
        made.append(torch.full((HEADS,), 0.0 if self.trained else HALF_PERCENT))
        self.tensors.extend(each.to(self.device).requires_grad_(self.trained) for each in made)

    @property
    def hidden(self) -> Tensor:
        return torch.ones(self.length, self.length, dtype=torch.bool, device=self.device).triu(1)

    @property
    def cell(self) -> str:
        return f"S={self.length} B={self.batch} H={HEADS} D={self.dim} fp32"

    def products(self, count: int) -> int:
        """Floating-point operations of so many causal products."""
        return count * self.batch * HEADS * self.length**2 * self.dim

    def facts(self) -> dict[str, object]:
        return {"batch": self.batch, "length": self.length, "dim": self.dim, "heads": HEADS, "dtype": "fp32"}


def stepped(forward: Callable[[], tuple[Tensor, Tensor]], leaves: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, then the gradients of a loss of both outputs, although the harness measures without gradients."""

    def step() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            out, expected = forward()
            return torch.autograd.grad(out.sum() + expected.sum(), leaves)

    return step


def train(batch: int, length: int, dim: int, asked: Options) -> Scene:
    """One step of the post-training."""
    with torch.inference_mode(False):
        made = Inputs(batch, length, dim, asked.device, trained=True)
        hidden, seed = made.hidden, torch.tensor(1, device=asked.device)
        compiled = torch.compile(naive, dynamic=False)

    def ours() -> tuple[Tensor, Tensor]:
        found = gated_attention(*made.tensors, causal=True, gates="sampled", seed=seed)
        return found.out, found.expected

    candidates = {
        "ours": stepped(ours, made.tensors),
        "naive": stepped(lambda: naive(*made.tensors, hidden, True), made.tensors),
        "naive-compiled": stepped(lambda: compiled(*made.tensors, hidden, True), made.tensors),
    }
    name, size = f"gated train {made.cell}", made.tensors[0].nbytes
    peers = ("naive", "naive-compiled")
    case = Case(name, "forward + backward", "ours", peers, made.facts(), made.products(14), 12 * size)
    return Scene(name, candidates, (case,))


def evaluate(batch: int, length: int, dim: int, asked: Options) -> Scene:
    """Hard gates, with and without the counts."""
    made = Inputs(batch, length, dim, asked.device, trained=False)
    q, k, v, bias = made.tensors
    hidden, compiled = made.hidden, torch.compile(naive, dynamic=False)
    candidates = {
        "counted": lambda: gated_attention(q, k, v, bias, causal=True),
        "bare": lambda: gated_attention(q, k, v, bias, causal=True, count=False),
        "naive": lambda: naive(q, k, v, bias, hidden, False),
        "naive-compiled": lambda: compiled(q, k, v, bias, hidden, False),
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    name, peers = f"gated eval density=0.4% {made.cell}", ("naive", "naive-compiled", "sdpa")
    work = (made.facts(), made.products(2), 4 * q.nbytes)
    counted = Case(f"{name}, counted", "with expected and kept edges", "counted", peers, *work)
    return Scene(name, candidates, (counted, Case(name, "output alone", "bare", peers, *work)))


def scenes(asked: Options) -> Iterator[Scene]:
    for shape in QUICK if asked.quick else TRAIN:
        torch.compiler.reset()
        yield train(*shape, asked)
    for shape in EVALUATE[:1] if asked.quick else EVALUATE:
        torch.compiler.reset()
        yield evaluate(*shape, asked)
