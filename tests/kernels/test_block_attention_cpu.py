"""Block-sparse attention on the CPU, native and in PyTorch: against a dense reference in fp64, on awkward shapes."""

from dataclasses import dataclass

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager, softmax_terms
from surgery.kernels.cpu import block_attention as cpu
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.native import available

needs_native = pytest.mark.skipif(available("block_attention") is not None, reason="no native block attention here")
BACKENDS = [pytest.param("native", marks=needs_native), pytest.param("widened", marks=needs_native), "torch"]


@dataclass(frozen=True)
class Shape:
    """One call. `mask`: some (40 % of pairs, the first queries with none), blocks, all, none, causal."""

    mask: str
    queries: int
    keys: int
    dim: int = 64
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    patterns: int = 1
    block: tuple[int, int] = (128, 128)

    def blocks(self) -> Blocks:
        size = (self.patterns, self.queries, self.keys)
        if self.mask == "causal":
            return Blocks.causal(self.queries, self.keys, self.block)
        if self.mask == "blocks":
            grid = (self.patterns, -(-self.queries // self.block[0]), -(-self.keys // self.block[1]))
            return Blocks.from_table(torch.rand(grid) < 0.5, self.queries, self.keys, self.block)
        if self.mask in ("all", "none"):
            return Blocks.from_mask(torch.full(size, self.mask == "all"), self.block)
        mask = torch.rand(size) < 0.4
        mask[:, : self.queries // 3] = False
        mask[:, self.queries // 2 :, : self.block[1]] = True
        return Blocks.from_mask(mask, self.block)


SHAPES = [
    Shape("all", 1, 1),
    Shape("all", 1, 300, dim=128),
    Shape("some", 17, 5, dim=20),
    Shape("none", 70, 70, dim=32),
    Shape("all", 128, 256, dim=256),
    Shape("some", 200, 333, heads=4, kv_heads=2, patterns=4),
    Shape("some", 130, 65, dim=80, batch=2, heads=2, kv_heads=1, patterns=4, block=(64, 32)),
    Shape("some", 67, 90, dim=48, heads=16, kv_heads=1, block=(16, 64)),
    Shape("some", 90, 67, dim=32, heads=3, kv_heads=3, block=(32, 16)),
    Shape("blocks", 300, 260, dim=128, heads=6, kv_heads=2, patterns=6, block=(64, 64)),
    Shape("causal", 190, 260, heads=2, kv_heads=1, block=(128, 64)),
    Shape("causal", 260, 190, dim=80, block=(64, 128)),
]


@dataclass(frozen=True)
class Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad: torch.Tensor
    grad_lse: torch.Tensor | None = None


def inputs(shape: Shape, dtype: torch.dtype) -> Inputs:
    """Slices of parents that are NaN elsewhere, so that a read past a row is seen; heads beside rows in memory."""

    def guarded(heads: int, rows: int) -> torch.Tensor:
        parent = torch.full((shape.batch, rows + 2, heads + 1, shape.dim + 3), float("nan"), dtype=dtype)
        inside = parent[:, 1:-1, :heads, 1 : 1 + shape.dim].transpose(1, 2)
        return inside.copy_(torch.randn(inside.shape))

    sizes = [(shape.heads, shape.queries), *[(shape.kv_heads, shape.keys)] * 2, (shape.heads, shape.queries)]
    return Inputs(*(guarded(*size) for size in sizes), torch.randn(shape.batch, shape.heads, shape.queries))


def run(backend: str, it: Inputs, blocks: Blocks) -> list[torch.Tensor]:
    """out, lse, dq, dk, dv of a backend."""
    rest = (blocks.tensors(), blocks.block, it.q.shape[-1] ** -0.5)
    if backend == "torch":
        forward, backward, wide = cpu.torch_forward, cpu.torch_backward, ()
    else:
        forward, backward, wide = cpu.native_forward, cpu.native_backward, (backend == "widened",)
    out, lse = forward(it.q, it.k, it.v, *rest, *wide)
    return [out, lse, *backward(it.grad, it.grad_lse, it.q, it.k, it.v, out, lse, *rest, *wide)]


def dense(it: Inputs, mask: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same by dense masked attention in a dtype, gradients by autograd."""
    q, k, v = (each.detach().to(dtype).requires_grad_() for each in (it.q, it.k, it.v))
    share = q.shape[1] // k.shape[1]
    patterns = mask if mask.shape[0] in (1, q.shape[1]) else mask.unflatten(0, (q.shape[0], q.shape[1]))
    scores = q @ k.repeat_interleave(share, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~patterns, float("-inf"))
    weights = scores.softmax(-1).masked_fill(~patterns, 0.0)
    out = weights @ v.repeat_interleave(share, 1)
    lse = scores.to(torch.promote_types(dtype, torch.float32)).logsumexp(-1)
    seen = torch.where(lse.isinf(), 0, lse)
    given = it.grad.to(dtype), torch.zeros_like(seen) if it.grad_lse is None else it.grad_lse.to(seen.dtype)
    grads = torch.autograd.grad((out, seen), (q, k, v), given)
    return [out.detach(), lse.detach(), *(grad.nan_to_num(0.0) for grad in grads)]


def logsumexp(it: Inputs, blocks: Blocks) -> torch.Tensor:
    return dense(it, blocks.dense_mask(), torch.float32)[1]


def weights_of(it: Inputs, blocks: Blocks) -> torch.Tensor:
    """What a value is weighed by, in fp64: attention over unit vectors."""
    keys = it.k.shape[2]
    units = torch.eye(keys, dtype=torch.float64).expand(*it.k.shape[:2], -1, -1)
    grad = torch.zeros(*it.q.shape[:3], keys)
    return dense(Inputs(it.q, it.k, units, grad), blocks.dense_mask(), torch.float64)[0]


TIMES = {"out": 2, "lse": 2, "dq": 3, "dk": 3, "dv": 3}


def off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return (ours.double() - exact).abs().max().item() if exact.numel() else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_further_from_exact_than_eager(backend, shape, dtype):
    def draw(seed: int) -> Draw:
        torch.manual_seed(seed)
        blocks, it = shape.blocks(), inputs(shape, dtype)
        exact, eager = (dense(it, blocks.dense_mask(), each) for each in (torch.float64, dtype))
        weights, scale = weights_of(it, blocks), shape.dim**-0.5
        terms = softmax_terms(weights, (it.q, it.k, it.v), it.grad.double(), *exact[:2], scale)
        eager[1] = logsumexp(it, blocks)  # ours are made from sums in fp32
        return Draw(lambda: checked(it, blocks, exact), eager, exact, [None, None, *terms])

    def checked(it: Inputs, blocks: Blocks, exact: list[torch.Tensor]) -> list[torch.Tensor]:
        made, empty = run(backend, it, blocks), exact[1].isneginf()
        assert [each.dtype for each in made] == [dtype, torch.float32, dtype, dtype, dtype]
        assert not made[0].movedim(-1, 0)[:, empty].any() and not made[2].movedim(-1, 0)[:, empty].any()
        return made

    assert_as_exact_as_eager(draw, TIMES, shape.batch * shape.heads * shape.queries)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_go_to_torch(dtype):
    torch.manual_seed(0)
    shape = Shape("some", 70, 130, heads=2, kv_heads=1, patterns=2, block=(32, 64))
    blocks, it = shape.blocks(), inputs(shape, dtype)
    assert "fp32 and bf16" in cpu.refuse_native(it.q, it.k, it.v, blocks.tensors(), blocks.block, 1.0)
    bound = 1e-12 if dtype == torch.float64 else 4e-3
    for mine, exact in zip(run("torch", it, blocks), dense(it, blocks.dense_mask(), torch.float64)):
        finite = exact.isfinite()
        assert (mine[finite].double() - exact[finite]).abs().max() < bound


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask, block", [("some", (64, 64)), ("blocks", (128, 32)), ("causal", (32, 128))])
def test_the_same_bits_for_any_number_of_threads(dtype, mask, block):
    """Four key heads keep 1, 2 and 4 threads busy and 3 not: dq is then made on its own, in the same order."""
    torch.manual_seed(0)
    shape = Shape(mask, 301, 289, batch=2, heads=4, kv_heads=2, patterns=8, block=block)
    blocks, it = shape.blocks(), inputs(shape, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            results.append(run("native", it, blocks))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("queries, keys", [(0, 70), (70, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_queries_or_keys_all_is_zero(backend, queries, keys):
    shape = Shape("causal", queries, keys, batch=2, heads=2, kv_heads=1, block=(32, 32))
    it, blocks = inputs(shape, torch.float32), shape.blocks()
    out, lse, dq, dk, dv = run(backend, it, blocks)
    assert out.shape == it.q.shape and lse.isneginf().all()
    assert not any(each.any() for each in (out, dq, dk, dv))


@needs_native
def test_large_scores_neither_overflow_nor_lose_the_largest():
    torch.manual_seed(0)
    shape = Shape("all", 96, 320, block=(32, 64))
    blocks, it = shape.blocks(), inputs(shape, torch.float32)
    # The score grows from one chunk of keys to the next: levels have to follow.
    it.k.copy_(torch.arange(320.0).div(8).unsqueeze(-1) * torch.ones(64))
    it.q.copy_(torch.where(torch.arange(96) % 2 == 0, 1.0, -1.0).unsqueeze(-1) * torch.rand(96, 1) * torch.ones(64))
    ours, exact = run("native", it, blocks), dense(it, blocks.dense_mask(), torch.float64)
    eager = dense(it, blocks.dense_mask(), torch.float32)
    assert off(ours[0], exact[0]) <= 2 * off(eager[0], exact[0])


@needs_native
def test_a_value_may_be_narrower_than_a_key():
    torch.manual_seed(0)
    shape = Shape("some", 100, 150, dim=64, block=(64, 64))
    blocks, it = shape.blocks(), inputs(shape, torch.float32)
    it = Inputs(it.q, it.k, it.v[..., :40], it.grad[..., :40])
    exact = dense(it, blocks.dense_mask(), torch.float64)
    for backend in ("native", "torch"):
        for mine, true in zip(run(backend, it, blocks), exact):
            finite = true.isfinite()
            assert mine.shape == true.shape and (mine[finite] - true[finite]).abs().max() < 2e-5


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"scale": -1.0}, "positive scale"),
        ({"block": (256, 64)}, "256 × 64"),
        ({"dtype": torch.float16}, "fp32 and bf16"),
    ],
)
def test_a_refusal_says_why(change, reason):
    x = torch.randn(1, 1, 4, 16, dtype=change.get("dtype", torch.float32))
    assert reason in cpu.refuse_native(x, x, x, [], change.get("block", (64, 64)), change.get("scale", 1.0))
