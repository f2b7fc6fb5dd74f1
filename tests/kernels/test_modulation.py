"""Modulation: every implementation against the reference in fp64, gradients, packing, and what is refused."""

import pytest
import torch
from surgery.kernels.cpu import modulation as cpu
from surgery.kernels.operators.modulation import modulation, pack_modulation, packed_modulation
from surgery.kernels.reference import modulation as reference
from torch.library import opcheck
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

CUDA = torch.cuda.is_available()
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 131, 96), (8, 64, 48), (9, 1, 1), (5, 3, 17), (33, 130, 65), (64, 392, 100)]
"""Batch, kept coordinates, outputs."""


def guarded(*shape):
    """Random numbers inside a parent of NaN, rows apart."""
    parent = torch.full([each + 3 for each in shape], float("nan"), dtype=torch.float64)
    inside = parent[tuple(slice(1, each + 1) for each in shape)]
    inside.copy_(torch.randn(shape, dtype=torch.float64) / shape[-1] ** (len(shape) == 2 and 0.5))
    return parent


def inside(parent, dtype, device="cpu"):
    return parent.to(device, dtype)[tuple(slice(1, -2) for _ in parent.shape)]


def arguments(batch, kept, outputs, dtype, device="cpu"):
    torch.manual_seed(kept)
    parents = guarded(batch, kept), guarded(outputs, kept), guarded(outputs)
    return [inside(each, dtype, device) for each in parents]


def eager(c, weight, bias, activate):
    return linear(silu(c) if activate else c, weight, bias)


def assert_as_close_as_eager(made, given, activate, times=2, compute=eager):
    """At most `times` the error that PyTorch makes in the same dtype, and what one rounding of the result makes."""
    truth = reference.modulation(*(each.double() for each in given), activate)
    own = (compute(*given, activate).double() - truth).abs().max()
    floor = truth.abs().max() * torch.finfo(made.dtype).eps / 2
    assert (made.double() - truth).abs().max() <= times * torch.maximum(own, floor)


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_cpu(shape, dtype, backend, monkeypatch):
    if backend == "native" and (reason := cpu.refuse(dtype)):
        pytest.skip(reason)
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    given = arguments(*shape, dtype)
    for activate in (True, False):
        made = modulation(*given, activate=activate)
        assert made.shape == (shape[0], shape[2]) and made.is_contiguous()
        assert_as_close_as_eager(made, given, activate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] + [torch.bfloat16] * CUDA)
@pytest.mark.parametrize("shape", [(1, 131, 40), (33, 50, 37), (16, 64, 64)])
def test_in_triton(shape, dtype, device, monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    given = arguments(*shape, dtype, device)
    for activate, bias in ((True, given[2]), (False, None)):
        made = modulation(*given[:2], bias, activate=activate)
        assert_as_close_as_eager(made, [*given[:2], given[2] if bias is not None else 0 * given[2]], activate)
        assert torch.equal(made, modulation(*given[:2], bias, activate=activate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_too(dtype):
    given = arguments(4, 21, 18, dtype)
    assert_as_close_as_eager(modulation(*given), given, True)
    packed = pack_modulation(given[1])
    assert torch.equal(packed_modulation(given[0], packed, given[2], 18), modulation(*given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_gives_the_same_bits(shape, dtype):
    c, weight, bias = arguments(*shape, dtype)
    packed = pack_modulation(weight)
    assert torch.equal(cpu.unpack(packed, *weight.shape), weight)
    assert not packed.isnan().any()
    for shift in (bias, None):
        assert torch.equal(packed_modulation(c, packed, shift, len(weight)), modulation(c, weight, shift))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(dtype):
    c, weight, bias = arguments(13, 75, 50, dtype)
    together = modulation(c, weight, bias)
    assert torch.equal(together, torch.cat([modulation(row[None], weight, bias) for row in c]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_give_the_same_bits(dtype):
    given = arguments(9, 131, 400, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = modulation(*given)
        torch.set_num_threads(2)
        assert torch.equal(one, modulation(*given))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, modulation(*given))


def test_strides_and_leading_dims():
    c, weight, bias = arguments(6, 20, 33, torch.float32)
    plain = modulation(c, weight, bias)
    assert torch.equal(modulation(c.view(2, 3, 20) if c.is_contiguous() else c.unflatten(0, (2, 3)), weight, bias),
                       plain.view(2, 3, 33))  # fmt: skip
    assert torch.equal(modulation(c[0], weight, bias), plain[0])
    assert torch.equal(modulation(c.T.contiguous().T, weight.T.contiguous().T, bias.repeat(2)[:33]), plain)
    assert torch.equal(modulation(c, weight[:1].expand(33, -1), None), modulation(c, weight[:1], None).expand(-1, 33))
    assert modulation(c[:0], weight, bias).shape == (0, 33)
    assert torch.equal(modulation(c[:, :0], weight[:, :0], bias), bias.expand(6, -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activate", [True, False])
def test_gradients(dtype, activate):
    given = arguments(7, 45, 30, dtype)
    grad = torch.randn(7, 30).to(dtype)
    truth = reference.modulation_backward(grad.double(), *(each.double() for each in given[:2]), activate)

    def gradients(compute):
        inputs = [each.clone().requires_grad_() for each in given]
        return torch.autograd.grad(compute(*inputs), inputs, grad)

    ours = gradients(lambda c, weight, bias: modulation(c, weight, bias, activate=activate))
    theirs = gradients(lambda c, weight, bias: eager(c, weight, bias, activate))
    through = gradients(lambda c, weight, bias: packed_modulation(c, cpu.pack(weight), bias, 30, activate=activate))
    for found in (ours, through):
        for made, peer, true in zip(found, theirs, truth, strict=True):
            floor = true.abs().max() * torch.finfo(dtype).eps / 2
            own = (peer.double() - true).abs().max()
            assert (made.double() - true).abs().max() <= 3 * torch.maximum(own, floor)


@pytest.mark.parametrize("activate", [True, False])
def test_the_reference_has_the_right_gradients(activate):
    torch.manual_seed(0)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (4, 5), (4,))]
    made = reference.modulation(*given, activate)
    grad = torch.randn_like(made)
    expected = torch.autograd.grad(made, given, grad)
    for ours, theirs in zip(reference.modulation_backward(grad, *given[:2], activate), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_registered_as_operators_are():
    c, weight, bias = arguments(3, 9, 20, torch.float32)
    given = [each.clone().requires_grad_() for each in (c, weight, bias)]
    opcheck(torch.ops.surgery.modulation.default, (*given, True))
    opcheck(torch.ops.surgery.modulation.default, (*given[:2], None, False))
    packed = pack_modulation(weight).requires_grad_()
    opcheck(torch.ops.surgery.modulation_packed.default, (given[0], packed, given[2], 20, True))
    opcheck(
        torch.ops.surgery.modulation_backward.default,
        (torch.randn(3, 20), c.clone(), weight.clone(), True, [True, False, True]),
    )


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 11), (24,)))
        self.register_buffer("packed", pack_modulation(self.weight))

    def forward(self, c):
        return modulation(c, self.weight, self.bias) + packed_modulation(c, self.packed, self.bias, 24)


def test_compiles_whole_and_exports_with_a_free_batch():
    layer = Layer()
    c = torch.randn(4, 11)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for eager_grad, compiled_grad in zip(
        torch.autograd.grad(layer(c).sum(), list(layer.parameters())),
        torch.autograd.grad(compiled(c).sum(), list(layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(eager_grad, compiled_grad)
    exported = torch.export.export(layer, (c,), dynamic_shapes={"c": {0: torch.export.Dim("batch")}}, strict=False)
    assert torch.equal(exported.module()(torch.ones(7, 11)), layer(torch.ones(7, 11)))


def test_flops_are_counted():
    c, weight, bias = arguments(3, 9, 20, torch.float32)
    with FlopCounterMode(display=False) as counter:
        modulation(c, weight, bias)
        packed_modulation(c, pack_modulation(weight), bias, 20)
    assert counter.get_total_flops() == 2 * (2 * 3 * 9 * 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, w, b: (c[:, :-1], w, b), "c is"),
        (lambda c, w, b: (c, w, b[:-1]), "bias is"),
        (lambda c, w, b: (c, w.half(), b), "one floating dtype"),
        (lambda c, w, b: (c.int(), w.int(), b.int()), "one floating dtype"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        modulation(*change(*arguments(2, 5, 6, torch.float32)))


def test_a_misfit_packing_is_refused():
    c, weight, bias = arguments(2, 5, 18, torch.float32)
    for packed, outputs in ((pack_modulation(weight), 40), (pack_modulation(weight[:, :4]), 18), (weight, 18)):
        with pytest.raises(ValueError, match="are packed as"):
            packed_modulation(c, packed, None, outputs)
    with pytest.raises(ValueError, match="a weight is"):
        pack_modulation(bias)
