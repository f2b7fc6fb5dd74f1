"""Block-sparse linear layers against dense ones: `python -m bench.linear [--quick] [--json]`.

    dense             the dense layer, eager
    dense-compiled    under `torch.compile`, its weight frozen
    dense-packed      its weight laid out once in oneDNN's own blocks: on a CPU the fastest dense product there is
    bsr               the same blocks as torch's own sparse BSR tensor, for 10 % of blocks of 64, where it runs

Every density and block size of a batch is measured in the same rounds. Rows `linear+backward` also take the gradients of
input, weight (ours: of the kept blocks) and bias. Building the index is not in `ours_ms`; it is shown beside it.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from surgery.kernels.operators.block_linear import block_linear
from surgery.kernels.operators.block_weight import BlockWeight
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.harness import Case, Options, Scene, main

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CELL = (0.10, 64)
VARIANTS = ((0.02, 64), CELL, (0.30, 64), (0.50, 64), (0.10, 32), (0.10, 128))
"""Density and block side."""


@dataclass(frozen=True)
class Problem:
    """A layer's dense weight [size, size], and what goes in."""

    size: int
    batch: int
    dtype: torch.dtype
    device: str
    backward: bool = False

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and bias, the same at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shapes = (self.batch, self.size), (self.size, self.size), (self.size,)
            made = (torch.randn(shape).to(self.device, self.dtype) for shape in shapes)
            x, weight, bias = made
            return x, weight.div_(self.size**0.5), bias

    @property
    def label(self) -> str:
        return f"{self.size}x{self.size}", f"batch={self.batch} {NAMES[self.dtype]}"


def kept_blocks(size: int, side: int, density: float) -> Tensor:
    """That share of the blocks, at random, the same at each call."""
    grid = -(-size // side)
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(side))
    mask = torch.zeros(grid * grid, dtype=torch.bool)
    mask[order[: round(density * grid * grid)]] = True
    return mask.view(grid, grid)


def stepped(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward, and the gradients of all inputs."""
    live = [each.detach().clone().requires_grad_() for each in inputs]
    with torch.no_grad():
        grad = torch.ones_like(function(*live))

    def run():
        with torch.enable_grad():
            return torch.autograd.grad(function(*live), live, grad)

    return run


def frozen(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """A compiled layer whose weight the compiler may lay out for good; compiled here."""
    import torch._inductor.config as inductor

    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    compiled = torch.compile(layer.eval(), dynamic=False)
    with inductor.patch(freezing=True, compile_threads=1):
        compiled(x)
    return lambda: compiled(x)


def dense(problem: Problem, asked: Options) -> dict[str, Callable[[], Any]]:
    """The dense peers, each forward or forward and backward."""
    x, weight, bias = problem.tensors()
    if problem.backward:
        compiled = torch.compile(lambda x, weight, bias: linear(x, weight, bias), dynamic=False)
        found = {"dense": stepped(linear, (x, weight, bias))}
        return found | (
            {"dense-compiled": stepped(compiled, (x, weight, bias))} if asked.wants("dense-compiled") else {}
        )
    found = {"dense": lambda: linear(x, weight, bias)}
    if asked.wants("dense-compiled"):
        found["dense-compiled"] = frozen(x, weight, bias)
    if asked.wants("dense-packed") and asked.device == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, problem.batch)
        found["dense-packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found


def bsr(weight: BlockWeight, x: Tensor, bias: Tensor) -> Callable[[], Tensor] | None:
    """torch's own sparse product of the same blocks, or None where it does not run."""
    size = (weight.outputs, weight.inputs)
    with warnings.catch_warnings(action="ignore"):
        sparse = torch.sparse_bsr_tensor(weight.ptr, weight.idx, weight.values, size, check_invariants=True)
    try:
        linear(x, sparse, bias)
    except RuntimeError:
        return None
    return lambda: linear(x, sparse, bias)


def scene(problem: Problem, variants: tuple[tuple[float, int], ...], asked: Options) -> Scene:
    """All densities and block sizes of one problem, in the same rounds."""
    x, weight, bias = problem.tensors()
    candidates = dense(problem, asked)
    shared, cases = tuple(candidates), []
    shape, rest = problem.label
    kind = "linear+backward" if problem.backward else "linear"
    for density, side in variants:
        mask = kept_blocks(problem.size, side, density).to(problem.device)
        begun = time.perf_counter()
        sparse = BlockWeight.from_dense(weight, (side, side), mask)
        build = (time.perf_counter() - begun) * 1e3
        row = f"density={density:.0%} block={side}"
        candidates[row] = ours(sparse, x, bias, problem.backward)
        peers = shared
        if (density, side) == CELL and not problem.backward and asked.wants("bsr") and (theirs := bsr(sparse, x, bias)):
            candidates["bsr"] = theirs
            peers = (*shared, "bsr")
        name = f"{kind} density={density:.0%} {shape} block={side} {rest}"
        facts = {"dtype": NAMES[problem.dtype], "batch": problem.batch, "density": density, "block": side}
        facts["drawn"] = (density, side) == CELL
        cases.append(Case(name, row, row, peers, facts, *work(problem, sparse), build))
    return Scene(f"{kind} {shape} {rest}", candidates, tuple(cases))


def ours(weight: BlockWeight, x: Tensor, bias: Tensor, backward: bool) -> Callable[[], Any]:
    if not backward:
        return lambda: block_linear(x, weight, bias)
    index, outputs = weight.tensors(), weight.outputs

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.surgery.block_linear(x, values, bias, index, outputs)

    return stepped(call, (x, weight.values, bias))


def work(problem: Problem, weight: BlockWeight) -> tuple[float, float]:
    """Multiplications and additions of the kept blocks; bytes of blocks, input and output, each moved once a product."""
    products = 3 if problem.backward else 1
    numbers = weight.values.numel() + 2 * problem.batch * problem.size
    return 2.0 * products * problem.batch * weight.values.numel(), float(
        products * numbers * weight.values.element_size()
    )


def problems(asked: Options) -> Iterator[tuple[Problem, tuple[tuple[float, int], ...]]]:
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (16,) if asked.quick else (1, 16, 64, 256):
            yield Problem(4096, batch, dtype, asked.device), (CELL,) if asked.quick else VARIANTS
        for batch in (16,) if asked.quick else (16, 256):
            yield Problem(4096, batch, dtype, asked.device, backward=True), (CELL,)
    if not asked.quick:
        yield Problem(8192, 16, torch.float32, asked.device), (CELL,)


def scenes(asked: Options) -> Iterator[Scene]:
    for problem, variants in problems(asked):
        torch.compiler.reset()
        yield scene(problem, variants, asked)


if __name__ == "__main__":
    raise SystemExit(main("linear", scenes))
