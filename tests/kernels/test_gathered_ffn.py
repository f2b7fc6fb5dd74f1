"""`surgery::gathered_ffn`: each backend against the reference, the operator, its gradients, the public function."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager
from surgery.kernels.cpu import gathered_ffn as cpu
from surgery.kernels.operators.gathered_ffn import OPERATOR, FeedForward, gathered_ffn, union
from surgery.kernels.reference.gathered_ffn import gathered_ffn as reference
from torch import Tensor

BLOCKS = {"some": lambda n: [0, n // 2, n - 1, -1], "all": lambda n: list(range(n)), "none": lambda n: [-1, -1]}


@dataclass(frozen=True)
class Problem:
    """Sizes of a call; `blocks` names a list."""

    rows: int
    d: int
    f: int
    block: int = 32
    activation: str = "gelu"
    gated: bool = False
    biased: bool = True
    blocks: str = "some"
    by_rows: bool = True
    strided: bool = False

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple:
        """The operator's arguments, each tensor inside a parent full of NaN."""
        torch.manual_seed(self.rows * 1000 + self.d + seed)
        d, f = self.d, self.f

        def made(*shape: int, scale: float = 1.0) -> Tensor:
            return guarded((torch.randn(shape) * scale).to(dtype).to(device))

        up, down = made(f, d, scale=d**-0.5), made(f, d, scale=f**-0.5)
        gate = made(f, d, scale=d**-0.5) if self.gated else None
        biases = (made(f), made(f) if self.gated else None, made(d)) if self.biased else (None, None, None)
        x = made(d, self.rows).t() if self.strided else made(self.rows, d)
        if not self.by_rows:
            down = guarded(down.t()).t()
        total = -(-f // self.block)
        listed = sorted({number for number in BLOCKS[self.blocks](total) if number >= 0})
        padding = [-1] * BLOCKS[self.blocks](total).count(-1)
        blocks = torch.tensor(listed + padding, dtype=torch.int32, device=device)
        return x, up, gate, down, *biases, blocks, self.block, self.activation


def guarded(tensor: Tensor) -> Tensor:
    """The same values, contiguous, between rows of NaN."""
    parent = tensor.new_full((tensor.shape[0] + 2, *tensor.shape[1:]), float("nan"))
    parent[1:-1] = tensor
    return parent[1:-1]


def wide(inputs: tuple) -> tuple:
    return tuple(each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)


def assert_as_good_as_eager(compute: Callable, problem: Problem, dtype: torch.dtype, device: str = "cpu") -> None:
    """`compute`, given the operator's arguments, errs at most twice as much as dense eager in the same dtype."""

    def draw(seed: int) -> Draw:
        inputs = problem.inputs(dtype, device, seed)
        return Draw(lambda: [compute(*inputs)], [reference(*inputs)], [reference(*wide(inputs))])

    assert_as_exact_as_eager(draw, {"y": 2}, problem.rows)


PROBLEMS = [
    Problem(1, 96, 200),
    Problem(1, 96, 200, by_rows=False, activation="relu2"),
    Problem(2, 33, 130, biased=False, activation="silu", gated=True),
    Problem(3, 100, 256, 64, activation="gelu_tanh", gated=True, strided=True),
    Problem(5, 70, 300, 128, activation="relu", by_rows=False),
    Problem(7, 64, 256, blocks="all", activation="relu2"),
    Problem(16, 130, 520, 64, activation="silu", gated=True, blocks="all"),
    Problem(16, 128, 256, activation="gelu", gated=True, by_rows=False),
    Problem(64, 80, 300, 64, activation="relu2"),
    Problem(64, 528, 96, activation="gelu_tanh", biased=False, by_rows=False),
    Problem(100, 40, 96, activation="silu"),
    Problem(4, 50, 40, 128, blocks="all"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_native(problem, dtype):
    inputs = problem.inputs(dtype)
    if reason := cpu.refuse_native(*inputs):
        pytest.skip(reason)
    assert_as_good_as_eager(cpu.native, problem, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("problem", PROBLEMS[::3], ids=str)
def test_gathered(problem, dtype, device):
    inputs = problem.inputs(dtype, device)
    if dtype == torch.float64:
        torch.testing.assert_close(cpu.gathered(*inputs), reference(*inputs), rtol=1e-12, atol=1e-12)
    else:
        assert_as_good_as_eager(cpu.gathered, problem, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", PROBLEMS[::2], ids=str)
def test_operator(problem, dtype, device):
    inputs = problem.inputs(dtype, device)
    assert torch.equal(OPERATOR(*inputs), OPERATOR(*inputs))
    assert_as_good_as_eager(OPERATOR, problem, dtype, device)


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("biased", [True, False])
def test_no_blocks_leave_the_bias(backend, biased, monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    x, *rest = Problem(3, 48, 96, blocks="none", biased=biased).inputs(torch.float32)
    expected = (torch.zeros(48) if rest[5] is None else rest[5]).expand(3, 48)
    assert torch.equal(OPERATOR(x, *rest), expected)
    empty = torch.empty(0, dtype=torch.int32)
    assert torch.equal(OPERATOR(x, *rest[:6], empty, *rest[7:]), expected)


def test_no_rows():
    x, *rest = Problem(1, 48, 96).inputs(torch.float32)
    assert OPERATOR(x[:0], *rest).shape == (0, 48)


def test_any_number_of_threads_gives_the_same_bits():
    inputs = Problem(6, 300, 520).inputs(torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = OPERATOR(*inputs)
        torch.set_num_threads(2)
        assert torch.equal(one, OPERATOR(*inputs))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ["relu", "relu2", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("gated", [False, True])
def test_native_activations_far_out(activation, gated):
    """Large, tiny and not-a-number channels: what the activation gives there, not only near zero."""
    x = torch.tensor([[1.0]])
    far = torch.tensor(
        [-200.0, -20, -9, -5.5, -4, -1, -1e-3, -1e-30, 0, 1e-30, 1e-3, 1, 4, 5.5, 9, 20, 80, 200, float("nan")]
    )
    for value in far.tolist():
        up = torch.full((32, 1), value)
        down = torch.zeros(32, 1)
        down[0] = 1
        gate = up if gated else None
        inputs = (x, torch.ones_like(up) if gated else up, gate, down, None, None, None)
        inputs = (*inputs, torch.tensor([0], dtype=torch.int32), 32, activation)
        if reason := cpu.refuse_native(*inputs):
            pytest.skip(reason)
        true = reference(*wide(inputs))
        # Next to zero from below 1 + erf has lost all its digits, in eager as here: an error of ulps of x.
        torch.testing.assert_close(
            cpu.native(*inputs).double(),
            true,
            rtol=1e-5,
            atol=0 if value != value else abs(value) * 3e-7,
            equal_nan=True,
        )


GRADIENTS = [
    Problem(3, 40, 96),
    Problem(5, 40, 200, 64, activation="silu", gated=True),
    Problem(4, 33, 130, activation="relu2", by_rows=False, biased=False),
    Problem(4, 33, 130, activation="gelu_tanh", gated=True, biased=False),
    Problem(4, 33, 130, activation="relu", gated=True, blocks="none"),
]


def gradients(function, inputs: tuple) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() if isinstance(each, Tensor) else each for each in inputs[:7]]
    out = function(*leaves, *inputs[7:])
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(out.shape, generator=generator).bfloat16().to(out)  # the same number in every dtype
    wanted = [each for each in leaves if each is not None]
    return list(torch.autograd.grad(out, wanted, direction))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", GRADIENTS, ids=str)
def test_gradients(problem, dtype, device):
    def draw(seed: int) -> Draw:
        inputs = problem.inputs(dtype, device, seed)
        return Draw(lambda: ours(inputs), gradients(reference, inputs), gradients(reference, wide(inputs)))

    def ours(inputs: tuple) -> list[Tensor]:
        made = gradients(OPERATOR, inputs)
        assert all(each.dtype == dtype for each in made)
        return made

    wanted = [number for number, each in enumerate(problem.inputs(dtype)[:7]) if each is not None]
    assert_as_exact_as_eager(draw, {f"gradient {number}": 3 for number in wanted}, problem.rows)


def test_gradients_of_rows_not_kept_are_zero():
    inputs = Problem(3, 40, 96, blocks="some").inputs(torch.float32)
    inputs = (*inputs[:7], torch.tensor([1, -1], dtype=torch.int32), *inputs[8:])
    _, up, down, up_bias, _ = gradients(OPERATOR, inputs)
    for each in (up, down, up_bias):
        assert each[32:64].abs().min() > 0 and each[:32].eq(0).all() and each[64:].eq(0).all()


def test_gradcheck_of_the_reference():
    inputs = Problem(2, 5, 70, 32, activation="silu", gated=True).inputs(torch.float64)
    leaves = [each.clone().requires_grad_() for each in inputs[:7]]
    assert torch.autograd.gradcheck(lambda *each: reference(*each, *inputs[7:]), leaves)


@pytest.mark.parametrize("problem", GRADIENTS[:2], ids=str)
def test_opcheck(problem, device):
    inputs = problem.inputs(torch.float32, device)
    leaves = [each.detach().clone().requires_grad_() if isinstance(each, Tensor) else each for each in inputs[:7]]
    torch.library.opcheck(OPERATOR, (*leaves, *inputs[7:]))


def layer(problem: Problem, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple:
    x, up, gate, down_t, up_bias, gate_bias, down_bias, blocks, block, activation = problem.inputs(dtype, device)
    return x, FeedForward(up, None, gate, down_t, up_bias, gate_bias, down_bias, activation), blocks, block


class Layer(torch.nn.Module):
    def __init__(self, weights: FeedForward, block: int):
        super().__init__()
        self.weights, self.block = weights, block

    def forward(self, x: Tensor, blocks: Tensor) -> Tensor:
        return gathered_ffn(x, self.weights, blocks, block=self.block)


def test_compiled_and_exported(device):
    x, weights, blocks, block = layer(Problem(4, 40, 300, gated=True, activation="silu"), device=device)
    module = Layer(weights, block)
    expected = module(x, blocks)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, blocks), expected)
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    exported = torch.export.export(module, (x, blocks), dynamic_shapes=(rows, None), strict=False).module()
    assert torch.equal(exported(x, blocks), expected)
    assert torch.equal(exported(x[:3], blocks), module(x[:3], blocks))


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    x, weights, blocks, block = layer(Problem(4, 40, 128, gated=True))
    with FlopCounterMode(display=False) as counter:
        gathered_ffn(x, weights, blocks, block=block, dense_above=1.0)
    assert counter.get_total_flops() == 2 * 3 * 4 * 40 * 128
    with FlopCounterMode(display=False) as counter:
        gathered_ffn(x, weights, blocks[:1], block=block)
    assert counter.get_total_flops() == 2 * 3 * 4 * 40 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["some", "all"])
@pytest.mark.parametrize("both", [False, True])
def test_dense_gives_the_same_result(dtype, blocks, both):
    problem = Problem(5, 60, 300, 64, activation="silu", gated=True, blocks=blocks)

    def dense(*inputs) -> Tensor:
        x, up, gate, down_t, *biases, listed, block, activation = inputs
        down = down_t.t().contiguous() if both else None
        weights = FeedForward(up, down, gate, down_t, *biases, activation)
        return gathered_ffn(x, weights, listed, block=block, dense_above=0.0)

    assert_as_good_as_eager(dense, problem, dtype)
    with torch.no_grad():
        assert_as_good_as_eager(dense, problem, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["some", "all"])
@pytest.mark.parametrize("gated", [False, True])
def test_laid_out_once_gives_the_same_result(dtype, blocks, gated):
    def dense(*inputs) -> Tensor:
        x, up, gate, down_t, *biases, listed, block, activation = inputs
        weights = FeedForward(up, None, gate, down_t, *biases, activation).with_packed(8)
        assert weights.packed is not None
        with torch.no_grad():
            return gathered_ffn(x, weights, listed, block=block, dense_above=0.0)

    assert_as_good_as_eager(dense, Problem(5, 60, 300, 64, activation="silu", gated=gated, blocks=blocks), dtype)


def test_laid_out_weights_are_left_alone_where_they_cannot_serve():
    x, weights, blocks, block = layer(Problem(6, 40, 96, blocks="all"))
    laid_out = weights.with_packed()
    expected = gathered_ffn(x, weights, blocks, block=block, dense_above=0.0)
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(gathered_ffn(leaf, laid_out, blocks, block=block, dense_above=0.0).sum(), leaf)
    compiled = torch.compile(Layer(laid_out, block), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, blocks), expected)
    assert gathered_ffn(x[:0], laid_out, blocks, block=block, dense_above=0.0).shape == (0, 40)
    half = replace(weights, up=weights.up.half(), down_t=weights.down_t.half(), up_bias=None, down_bias=None)
    assert half.with_packed().packed is None


def test_leading_dims_are_rows():
    x, weights, blocks, block = layer(Problem(6, 40, 96))
    out = gathered_ffn(x.reshape(2, 3, 40), weights, blocks, block=block, dense_above=1.0)
    assert torch.equal(out.reshape(6, 40), gathered_ffn(x, weights, blocks, block=block, dense_above=1.0))


def test_down_as_a_linear_layer_stores_it():
    x, weights, blocks, block = layer(Problem(6, 40, 96))
    stored = replace(weights, down=weights.down_t.t().contiguous(), down_t=None)
    expected = gathered_ffn(x, weights, blocks, block=block)
    torch.testing.assert_close(gathered_ffn(x, stored, blocks, block=block), expected)
    assert torch.equal(stored.with_rows().down_t, weights.down_t)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([1, 0], r"blocks\[1\] = 0 is unsorted"),
        ([1, 1], r"blocks\[1\] = 1 is a duplicate"),
        ([0, 3], r"blocks\[1\] = 3 is out of range \(3 blocks\)"),
        ([-2], r"blocks\[0\] = -2 is out of range"),
        ([0, -1, 2], r"blocks\[2\] = 2 follows a -1"),
    ],
)
def test_lists_that_are_refused(listed, said):
    x, weights, _, block = layer(Problem(2, 40, 96))
    with pytest.raises(ValueError, match=said):
        gathered_ffn(x, weights, torch.tensor(listed, dtype=torch.int32), block=block)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "tanh"}, "'tanh': expected one of relu, relu2"),
        ({"down_t": None}, "needs down"),
        ({"gate_bias": torch.zeros(96)}, "gate_bias without a gate"),
        ({"down_t": torch.zeros(96, 41)}, r"down_t is \[96, 41\], expected \[96, 40\]"),
    ],
)
def test_weights_that_are_refused(change, said):
    _, weights, _, _ = layer(Problem(2, 40, 96))
    with pytest.raises(ValueError, match=said):
        replace(weights, **change)


def test_calls_that_are_refused():
    x, weights, blocks, _ = layer(Problem(2, 40, 96))
    with pytest.raises(ValueError, match="expected one of"):
        gathered_ffn(x, weights, blocks, block=48)
    with pytest.raises(ValueError, match="expected int32"):
        gathered_ffn(x, weights, blocks.long(), block=32)
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 40\]"):
        gathered_ffn(x[:, :39], weights, blocks, block=32)
    with pytest.raises(ValueError, match="up is torch.float32, x is torch.float64"):
        gathered_ffn(x.double(), weights, blocks, block=32)


def test_union():
    rows = torch.tensor([[0, 3, -1], [3, 5, 7]], dtype=torch.int32)
    assert union(rows).tolist() == [0, 3, 5, 7] and union(rows).dtype == torch.int32
    assert union(rows, 6).tolist() == [0, 3, 5, 7, -1, -1]
    assert union(rows[:, 2:][:1]).tolist() == []
    with pytest.raises(ValueError, match="union of 4 blocks does not fit in 3"):
        union(rows, 3)
