"""Cases of attention over listed edges as data, and the bound that every implementation is held to."""

from collections.abc import Callable
from dataclasses import dataclass

import surgery.kernels.operators.edge_attention  # noqa: F401 -- registers the operator
import torch
from accuracy import Draw, assert_as_exact_as_eager, finite, softmax_terms
from surgery.kernels.layouts.edges import Edges
from surgery.kernels.reference.edge_attention import all_keys, dense_mask
from surgery.kernels.reference.edge_attention import edge_attention as reference
from torch import Tensor

OPERATOR = torch.ops.surgery.edge_attention
NAMES = ("out", "lse", "dq", "dk", "dv")


@dataclass(frozen=True)
class Case:
    """Sizes, density of the lists, and what the softmax is over."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    patterns: int = 1
    density: float = 0.3
    normalize: str = "kept"
    causal: bool = False

    def __str__(self) -> str:
        shape = f"B{self.batch}-H{self.heads}/{self.kv_heads}-S{self.queries}x{self.keys}-D{self.dim}-M{self.patterns}"
        return f"{shape}-{self.density:g}-{self.normalize}{'-causal' if self.causal else ''}"

    def edges(self, device: str = "cpu") -> Edges:
        """Random lists; with at least three queries, the second has none."""
        mask = torch.rand(self.patterns, self.queries, self.keys) < self.density
        if self.causal:
            mask = mask.tril(self.keys - self.queries)
        if self.queries > 2:
            mask[:, 1] = False
        return Edges.from_mask(mask).to(device)

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: slices of parents that are NaN everywhere else, head dim contiguous or not."""
        q = guarded((self.batch, self.heads, self.queries, self.dim), dtype, device)
        k = guarded((self.batch, self.kv_heads, self.keys, self.dim), dtype, device, every=2)
        v = guarded((self.batch, self.kv_heads, self.keys, self.dim), dtype, device)
        return q, k, v

    @property
    def rest(self) -> tuple[float, str, bool]:
        return self.dim**-0.5, self.normalize, self.causal


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: str, every: int = 1) -> Tensor:
    """Random [B, H, S, D] inside a NaN parent [B, S + 2, H + 1, ...]."""
    batch, heads, rows, dim = shape
    parent = torch.full((batch, rows + 2, heads + 1, dim * every + 3), float("nan"), dtype=dtype, device=device)
    held = parent[:, 1:-1, 1:, 2 : 2 + dim * every : every].transpose(1, 2)
    return held.copy_(torch.randn(shape).to(device, dtype))


def results(function: Callable, inputs: tuple[Tensor, ...], edges: list[Tensor], rest: tuple) -> tuple[Tensor, ...]:
    """out, lse, dq, dk, dv of a loss of both outputs; where lse is -inf it is not part of the loss."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    out, lse = function(*leaves, edges, *rest)
    weights = loss_weights(out, lse)
    loss = (out * weights[0]).sum().to(lse.dtype) + (lse.masked_fill(lse.isinf(), 0) * weights[1]).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)


def loss_weights(out: Tensor, lse: Tensor) -> list[Tensor]:
    """The gradients of out and lse that every result is compared under: bf16 and fp16 hold them exactly."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(each.shape, generator=generator).bfloat16().to(each) for each in (out, lse)]


def assert_accurate(case: Case, dtype: torch.dtype, device: str = "cpu", own: int | None = None) -> None:
    """Outputs within 2x, gradients within 3x, of the error that the dense computation has in the same dtype.

    own: how many draws are computed by the kernel, None: all.
    """

    def draw(seed: int) -> Draw:
        torch.manual_seed(seed)
        inputs, edges = case.inputs(dtype, device), case.edges(device).tensors()
        exact = results(reference, tuple(each.double() for each in inputs), edges, case.rest)
        eager = results(reference, inputs, edges, case.rest)
        return Draw(lambda: ours(inputs, edges), eager, exact, [None, None, *terms(inputs, edges, exact)])

    def ours(inputs: tuple[Tensor, ...], edges: list[Tensor]) -> tuple[Tensor, ...]:
        made = results(OPERATOR, inputs, edges, case.rest)
        wide = torch.promote_types(dtype, torch.float32)
        assert [each.dtype for each in made] == [dtype, wide, dtype, dtype, dtype]
        return made

    def terms(inputs: tuple[Tensor, ...], edges: list[Tensor], exact: tuple[Tensor, ...]) -> list[Tensor]:
        q, k = (each.double() for each in inputs[:2])
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * case.rest[0]
        seen = dense_mask(edges, q, k.shape[2])
        if case.normalize == "all":
            seen = all_keys(q.shape[2], k.shape[2], case.causal, q.device)
        weights = (scores - finite(exact[1])[..., None]).masked_fill(~seen, float("-inf")).exp()
        return softmax_terms(weights, inputs, loss_weights(*exact[:2])[0], *exact[:2], case.rest[0])

    times = dict(zip(NAMES, (2, 2, 3, 3, 3), strict=True))
    assert_as_exact_as_eager(draw, times, case.batch * case.heads * case.queries, own)
