"""Block-sparse linear: every implementation and gradient against the reference in fp64, registration, determinism."""

from dataclasses import dataclass

import pytest
import torch
from surgery.kernels.cpu import block_linear as cpu
from surgery.kernels.operators.block_linear import OPERATOR, block_linear
from surgery.kernels.operators.block_weight import BlockWeight
from surgery.kernels.reference import block_linear as reference
from torch.library import opcheck
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Shape:
    """A call: sizes, block, and the share of blocks kept at random (0 and 1 are none and all)."""

    batch: int
    outputs: int
    inputs: int
    block: tuple[int, int] = (16, 16)
    share: float = 0.5

    @property
    def name(self):
        height, width = self.block
        return f"b{self.batch} {self.outputs}x{self.inputs} of {height}x{width} {self.share}"


SHAPES = [
    Shape(1, 48, 80),
    Shape(3, 45, 71, (16, 32)),
    Shape(4, 130, 65, (64, 32)),
    Shape(16, 64, 64, (64, 64), 1.0),
    Shape(21, 33, 100, (32, 16), 0.3),
    Shape(50, 1, 1, (64, 64), 1.0),
    Shape(37, 140, 256, (128, 128), 0.6),
    Shape(2, 40, 40, share=0.0),
]
SQUARE = [
    Shape(1, 45, 71),
    Shape(33, 50, 40, share=0.6),
    Shape(19, 65, 70, (64, 64), 0.7),
    Shape(2, 128, 120, (128, 128), 1.0),
    Shape(5, 40, 64, (32, 32), 0.0),
]


def named(shapes):
    return [pytest.param(shape, id=shape.name) for shape in shapes]


def guarded(dtype, device, *shape):
    """Random numbers inside a parent of NaN, rows apart."""
    parent = torch.full([each + 5 for each in shape], float("nan"), dtype=dtype)
    place = tuple(slice(2, each + 2) for each in shape)
    parent[place] = torch.randn(shape, dtype=torch.float64).to(dtype)
    return parent.to(device)[place]


def call(shape, dtype, device="cpu"):
    """x, weight, bias and an incoming gradient; the second row of blocks is empty."""
    torch.manual_seed(shape.batch + shape.inputs)
    height, width = shape.block
    keep = torch.rand(-(-shape.outputs // height), -(-shape.inputs // width)) < shape.share
    if shape.share < 1 and len(keep) > 1:
        keep[1] = False
    weight = BlockWeight.from_dense(torch.randn(shape.outputs, shape.inputs).to(dtype), shape.block, keep).to(device)
    x, bias = guarded(dtype, device, shape.batch, shape.inputs), guarded(dtype, device, shape.outputs)
    return x, weight, bias, guarded(dtype, device, shape.batch, shape.outputs)


def assert_as_close(made, peer, truth, times):
    """At most `times` the error of dense PyTorch in the same dtype, and of one rounding of the result."""
    floor = truth.abs().max() * torch.finfo(made.dtype).eps / 2 if truth.numel() else 0
    own = (peer.double() - truth).abs().max() if truth.numel() else torch.zeros(())
    assert made.shape == truth.shape and not made.isnan().any()
    if made.dtype == torch.float64:
        return torch.testing.assert_close(made, truth, rtol=1e-13, atol=1e-12)
    if truth.numel():
        assert (made.double() - truth).abs().max() <= times * torch.maximum(own, torch.as_tensor(floor))


def assert_agrees(shape, dtype, device="cpu"):
    """Output and gradients, twice, the same bits."""
    x, weight, bias, grad = call(shape, dtype, device)
    wide = (x.double(), weight.values.double(), bias.double())
    dense = weight.dense()
    for shift in (bias, None):
        made = block_linear(x, weight, shift)
        truth = reference.block_linear(*wide[:2], None if shift is None else wide[2], weight.tensors(), shape.outputs)
        assert_as_close(made, linear(x, dense, shift), truth, 2)
        assert torch.equal(made, block_linear(x, weight, shift))
    inputs = [each.clone().requires_grad_() for each in (x, weight.values, bias)]

    def gradients():
        made = OPERATOR(*inputs, weight.tensors(), shape.outputs)
        return torch.autograd.grad(made, inputs, grad)

    truths = reference.block_linear_backward(grad.double(), *wide[:2], weight.tensors())
    peers = reference.block_linear_backward(grad, x, weight.values, weight.tensors())
    found = gradients()
    for made, peer, truth in zip(found, peers, truths, strict=True):
        assert_as_close(made, peer, truth, 3)
    assert all(torch.equal(one, two) for one, two in zip(found, gradients(), strict=True))


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", named(SHAPES))
def test_on_a_cpu(shape, dtype, backend, monkeypatch):
    if backend == "native" and (reason := cpu.refuse(dtype)):
        pytest.skip(reason)
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    assert_agrees(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_too(dtype):
    assert_agrees(SHAPES[1], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] + [torch.bfloat16] * CUDA)
@pytest.mark.parametrize("shape", named(SQUARE))
def test_in_triton(shape, dtype, device, monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    assert_agrees(shape, dtype, device)


def test_triton_names_the_blocks_it_does_not_take(monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else a GPU is asked for first, where there is one
    x, weight, bias, _ = call(SHAPES[1], torch.float32)
    with pytest.raises(RuntimeError, match="takes square blocks, not 16 × 32"):
        block_linear(x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_give_the_same_bits(dtype):
    x, weight, bias, grad = call(Shape(300, 250, 190, (32, 32)), dtype)
    before = torch.get_num_threads()

    def everything():
        back = torch.ops.surgery.block_linear_backward(grad, x, weight.values, weight.tensors(), [True] * 3)
        return block_linear(x, weight, bias), *back[:2]

    try:
        torch.set_num_threads(1)
        one = everything()
        torch.set_num_threads(2)
        assert all(torch.equal(*pair) for pair in zip(one, everything(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_leading_dims_and_strides():
    x, weight, bias, _ = call(Shape(6, 45, 71), torch.float32)
    plain = block_linear(x, weight, bias)
    assert torch.equal(block_linear(x.unflatten(0, (2, 3)), weight, bias), plain.unflatten(0, (2, 3)))
    assert torch.equal(block_linear(x.T.contiguous().T, weight, bias), plain)
    assert torch.equal(block_linear(x[0].expand(4, -1), weight, bias), block_linear(x[0], weight, bias).expand(4, -1))
    assert block_linear(x[:0], weight, bias).shape == (0, 45)
    back = torch.ops.surgery.block_linear_backward(
        x.new_empty(0, 45), x[:0], weight.values, weight.tensors(), [True] * 3
    )
    assert back[0].shape == (0, 71) and not back[1].any() and not back[2].any()


def test_a_row_without_blocks_gives_its_bias():
    x, weight, bias, _ = call(Shape(5, 48, 48), torch.float32)
    assert torch.equal(block_linear(x, weight, bias)[:, 16:32], bias[16:32].expand(5, -1))


def test_the_reference_has_the_right_gradients():
    x, weight, bias, grad = call(Shape(3, 20, 37), torch.float64)
    given = [each.clone().requires_grad_() for each in (x, weight.values, bias)]
    made = reference.block_linear(*given, weight.tensors(), 20)
    torch.testing.assert_close(made, linear(x, weight.dense(), bias))
    expected = torch.autograd.grad(made, given, grad)
    found = reference.block_linear_backward(grad, x, weight.values, weight.tensors())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_registered_as_operators_are():
    x, weight, bias, grad = call(Shape(3, 20, 37), torch.float32)
    given = [each.clone().requires_grad_() for each in (x, weight.values, bias)]
    opcheck(OPERATOR, (*given, weight.tensors(), 20))
    opcheck(
        torch.ops.surgery.block_linear_backward.default,
        (grad, x, weight.values, weight.tensors(), [True, False, True]),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_flops_are_of_the_kept_blocks():
    x, weight, bias, _ = call(Shape(3, 64, 64), torch.float32)
    with FlopCounterMode(display=False) as counter:
        block_linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 3 * weight.values.numel()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, v, b, index: (x[:, :-20], v, b, index, 45), "the index is laid out for"),
        (lambda x, v, b, index: (x, v, b[:-1], index, 45), "bias is"),
        (lambda x, v, b, index: (x, v.half(), b, index, 45), "one floating dtype"),
        (lambda x, v, b, index: (x, v[:-1], b, index, 45), "a block for each"),
        (lambda x, v, b, index: (x, v, b, index[:4], 45), "int32 vectors"),
        (lambda x, v, b, index: (x, v, b, [each.long() for each in index], 45), "int32 vectors"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    x, weight, bias, _ = call(Shape(3, 45, 71), torch.float32)
    with pytest.raises(ValueError, match=said):
        OPERATOR(*change(x, weight.values, bias, weight.tensors()))
    with pytest.raises(ValueError, match="x is"):
        block_linear(x[:, 1:], weight)
