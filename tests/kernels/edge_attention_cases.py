"""Cases of attention over listed edges as data, and the bound that every implementation is held to."""

from collections.abc import Callable
from dataclasses import dataclass

import surgery.kernels.operators.edge_attention  # noqa: F401 -- registers the operator
import torch
from surgery.kernels.layouts.edges import Edges
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
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(each.shape, generator=generator).to(each) for each in (out, lse)]
    loss = (out * weights[0]).sum().to(lse.dtype) + (lse.masked_fill(lse.isinf(), 0) * weights[1]).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)


def assert_accurate(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """Outputs within 2x, gradients within 3x, of the error that the dense computation has in the same dtype."""
    torch.manual_seed(0)
    inputs, edges = case.inputs(dtype, device), case.edges(device).tensors()
    ours = results(OPERATOR, inputs, edges, case.rest)
    eager = results(reference, inputs, edges, case.rest)
    exact = results(reference, tuple(each.double() for each in inputs), edges, case.rest)
    for name, mine, same, truth in zip(NAMES, ours, eager, exact, strict=True):
        assert mine.shape == truth.shape, name
        assert mine.dtype == (torch.promote_types(dtype, torch.float32) if name == "lse" else dtype), name
        assert torch.equal(mine.isinf(), truth.isinf()), name
        factor = 2 if name in ("out", "lse") else 3
        error, bound = distance(mine, truth), factor * distance(same, truth)
        # Where eager happens to be exact: one unit in the last place of the largest value.
        floor = torch.finfo(mine.dtype).eps * float(finite(truth).abs().max() if truth.numel() else 0)
        assert error <= max(bound, floor), f"{name}: {error:.3g}, bound {bound:.3g}"


def finite(x: Tensor) -> Tensor:
    return x.masked_fill(x.isinf(), 0)


def distance(x: Tensor, truth: Tensor) -> float:
    """The largest absolute difference; NaN anywhere is a failure by comparing false."""
    return float((finite(x).double() - finite(truth)).abs().max()) if truth.numel() else 0.0
