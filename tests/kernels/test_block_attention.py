"""`surgery::block_attention` as an operator: what it refuses, exports, compiles and counts, on every backend."""

import subprocess
import sys

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.operators.block_attention import OPERATOR, block_attention
from surgery.kernels.reference import block_attention as reference
from torch.utils.flop_counter import FlopCounterMode

BACKENDS = ("native", "torch", "reference")


def a_call(device="cpu", dtype=torch.float32, patterns=2, seed=0):
    torch.manual_seed(seed)
    mask = torch.rand(patterns, 40, 50) < 0.5
    mask[:, 4:7] = False
    blocks = Blocks.from_mask(mask, (16, 32)).to(device)
    q = torch.randn(2, 2, 40, 16, device=device, dtype=dtype)
    k, v = (torch.randn(2, 1, 50, 16, device=device, dtype=dtype) for _ in range(2))
    return q, k, v, blocks


def dense(q, k, v, mask, scale):
    alive = mask.any(-1, keepdim=True)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scale
    weights = scores.masked_fill(~mask & alive, float("-inf")).softmax(-1).masked_fill(~alive, 0.0)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def with_gradients(attend, inputs, grad):
    leaves = [each.detach().requires_grad_() for each in inputs]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_as_good_as_eager(backend, dtype, monkeypatch):
    if backend == "native" and dtype in (torch.float16, torch.float64):
        return pytest.skip("the native kernel takes fp32 and bf16")
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    def draw(seed):
        *inputs, blocks = a_call(dtype=dtype, seed=seed)
        grad, mask = torch.randn_like(inputs[0]), blocks.dense_mask()
        eager = with_gradients(lambda *each: dense(*each, mask, 0.25), inputs, grad)
        doubles = [each.double() for each in inputs]
        exact = with_gradients(lambda *each: dense(*each, mask, 0.25), doubles, grad.double())
        return Draw(lambda: ours(inputs, blocks, grad), eager, exact)

    def ours(inputs, blocks, grad):
        made = with_gradients(lambda *each: block_attention(*each, blocks), inputs, grad)
        assert not made[0][:, :, 4:7].any() and not made[1][:, :, 4:7].any()
        return made

    if dtype == torch.float64:  # what eager computes is then exact by definition
        drawn = draw(0)
        for mine, exact in zip(drawn.ours(), drawn.exact, strict=True):
            torch.testing.assert_close(mine, exact, rtol=0, atol=1e-14)
        return
    assert_as_exact_as_eager(draw, {"out": 2, "dq": 3, "dk": 3, "dv": 3}, rows=160)


def test_the_reference_is_the_derivative_of_itself():
    *inputs, blocks = a_call(dtype=torch.float64, patterns=4)
    arguments = (blocks.tensors(), blocks.block, 0.25)
    leaves = [each.requires_grad_() for each in inputs]
    out, lse = reference.forward(*leaves, *arguments)
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    by_hand = reference.backward(grad, grad_lse, *inputs, out.detach(), lse.detach(), *arguments)
    total = (out * grad).sum() + (lse.masked_fill(lse.isinf(), 0) * grad_lse).sum()
    for mine, exact in zip(by_hand, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-13)


def test_gradients_are_derivatives_in_fp64():
    *inputs, blocks = a_call(dtype=torch.float64)
    leaves = [each[..., :4].clone().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(lambda *each: block_attention(*each, blocks), leaves, fast_mode=True)


def test_the_gradient_of_lse_alone_and_of_both():
    *inputs, blocks = a_call(dtype=torch.float64)
    leaves = [each[..., :4].clone().requires_grad_() for each in inputs]

    def finite(*each):
        out, lse = block_attention(*each, blocks, return_lse=True)
        return out, lse.masked_fill(lse.isinf(), 0)

    assert torch.autograd.gradcheck(finite, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *each: finite(*each)[1], leaves, fast_mode=True)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_operator_is_registered_whole(backend, device, monkeypatch):
    if backend:
        monkeypatch.setenv("SURGERY_KERNELS", backend)
    *inputs, blocks = a_call(device)
    leaves = [each.requires_grad_() for each in inputs]
    torch.library.opcheck(OPERATOR, (*leaves, blocks.tensors(), *blocks.block, 0.25))
    out, lse = block_attention(*inputs, blocks, return_lse=True)
    backward = torch.ops.surgery.block_attention_backward.default
    given = [each.detach() for each in (torch.randn_like(out), torch.randn_like(lse), *inputs, out, lse)]
    torch.library.opcheck(backward, (*given, blocks.tensors(), *blocks.block, 0.25))


def test_compiles_in_one_graph_with_any_batch(device):
    *inputs, blocks = a_call(device, patterns=1)
    attend = torch.compile(
        lambda q, k, v: block_attention(q, k, v, blocks), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for batch in (2, 5):
        some = [each.repeat(batch, 1, 1, 1) for each in inputs]
        grad = torch.randn_like(some[0])
        plain = with_gradients(lambda *each: block_attention(*each, blocks), some, grad)
        assert all(map(torch.equal, with_gradients(attend, some, grad), plain))


def test_exports_with_a_symbolic_batch(device):
    *inputs, blocks = a_call(device, patterns=1)

    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return block_attention(q, k, v, blocks)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Attend(), tuple(inputs), dynamic_shapes=({0: batch},) * 3, strict=False)
    assert "surgery.block_attention.default" in program.graph_module.code
    more = [each.repeat(3, 1, 1, 1) for each in inputs]
    assert torch.equal(program.module()(*more), block_attention(*more, blocks))


def test_lse_is_given(device):
    *inputs, blocks = a_call(device)
    out, lse = block_attention(*(each.requires_grad_() for each in inputs), blocks, return_lse=True)
    assert out.requires_grad and lse.requires_grad and lse.dtype == torch.float32
    assert lse[:, :, 4:7].isneginf().all() and lse[:, :, 7:].isfinite().all()


def test_counts_the_area_of_kept_blocks_without_reading_the_index(device):
    *inputs, blocks = a_call(device)
    kept = blocks.full_idx.numel() + blocks.part_idx.numel()  # over 2 patterns, each for a batch of 2
    with FlopCounterMode(display=False) as counter:
        block_attention(*(each.requires_grad_() for each in inputs), blocks).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 16 * kept * 16 * 32 * 2
    with FlopCounterMode(display=False) as counter:
        on_meta = [each.detach().to("meta") for each in (*inputs, *blocks.tensors())]
        OPERATOR(*on_meta[:3], on_meta[3:], *blocks.block, 0.25)
    assert counter.get_total_flops() == 4 * 16 * kept * 16 * 32 * 2


def test_is_the_same_on_two_runs_and_any_number_of_threads():
    *inputs, blocks = a_call()
    grad = torch.randn_like(inputs[0])
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            runs.append(with_gradients(lambda *each: block_attention(*each, blocks), inputs, grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


def cut(name, *index):
    """The call with one tensor cut."""
    return lambda q, k, v, blocks: {
        **{"q": q, "k": k, "v": v, "blocks": blocks},
        name: {"q": q, "k": k, "v": v}[name][index],
    }


REFUSALS = (
    (cut("q", 0), r"q \[2, 40, 16\].*expected \[batch, heads, rows, head dim\]"),
    (cut("v", ..., slice(8)), r"v \[2, 1, 50, 8\].*one shape; pad"),
    (lambda q, k, v, b: {"q": q, "k": k[:1], "v": v[:1], "blocks": b}, "batch 2, k has 1; expand"),
    (cut("q", ..., slice(8)), "head dim 8, k has 16; project"),
    (
        lambda q, k, v, b: {"q": q, "k": k.repeat(1, 3, 1, 1), "v": v.repeat(1, 3, 1, 1), "blocks": b},
        "2 query heads .* 3 key",
    ),
    (lambda q, k, v, b: {"q": q.half(), "k": k, "v": v, "blocks": b}, "float16.*cast them to one"),
    (cut("q", slice(None), slice(None), slice(39)), "40 queries × 50 keys, q and k have 39 × 50; make the layout"),
    (lambda q, k, v, b: {"q": q, "k": k, "v": v, "blocks": b.to("meta")}, r"blocks are on meta.*blocks\.to\('cpu'\)"),
    (
        lambda q, k, v, b: {"q": q.repeat(1, 3, 1, 1), "k": k, "v": v, "blocks": b},
        "2 patterns, q has 6 heads in a batch of 2",
    ),
    (lambda q, k, v, b: {"q": q, "k": k, "v": v, "blocks": b, "scale": -1.0}, r"scale is -1\.0.*positive"),
)


@pytest.mark.parametrize("change, message", REFUSALS, ids=[message[:24] for _, message in REFUSALS])
def test_refuses_what_does_not_fit_and_names_both_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        block_attention(**change(*a_call()))


def test_importing_the_operator_loads_no_gpu_kernel():
    """Triton itself may be loaded: torch does so where it counts operations."""
    check = (
        "import sys, torch; assert not torch.cuda.is_initialized(); assert 'surgery.kernels.triton' not in sys.modules"
    )
    code = f"import surgery.kernels.operators.block_attention; {check}"
    subprocess.run([sys.executable, "-c", code], check=True)
