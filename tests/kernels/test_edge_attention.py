"""Attention over listed edges on a CPU: the native kernels, plain PyTorch, the operator."""

import mmap
from dataclasses import replace

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager
from edge_attention_cases import OPERATOR, Case, assert_accurate, results
from surgery.kernels.layouts.edges import Edges
from surgery.kernels.native import available
from surgery.kernels.operators.edge_attention import edge_attention
from surgery.kernels.reference.edge_attention import edge_attention as reference
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

LARGE = (
    Case(2, 8, 8, 192, 192, 32, patterns=8, density=0.1, causal=True),
    Case(2, 8, 2, 256, 300, 64, density=0.05),
    Case(2, 4, 1, 200, 200, 80, patterns=4, density=0.2, causal=True),
    Case(2, 2, 2, 130, 257, 96, patterns=4),
    Case(1, 16, 1, 100, 120, 128, patterns=16, density=0.08),
    Case(1, 4, 2, 90, 90, 256, density=1.0),
    Case(1, 3, 3, 120, 70, 100, patterns=3),
    Case(2, 4, 2, 150, 150, 7, patterns=4),
    Case(2, 4, 2, 150, 170, 64, patterns=8, density=0.1, normalize="all"),
    Case(1, 4, 1, 170, 150, 80, density=0.1, normalize="all", causal=True),
    Case(1, 2, 2, 160, 200, 40, patterns=2, density=0.1, normalize="all", causal=True),
)
SMALL = (
    Case(2, 2, 2, 5, 9, 64, density=0.0),
    Case(1, 4, 4, 33, 17, 40, patterns=4),
    Case(2, 4, 2, 40, 50, 32, patterns=8, normalize="all"),
    Case(1, 2, 2, 3, 4, 16, density=0.0, normalize="all"),
    Case(2, 4, 2, 15, 15, 7, patterns=4),
    Case(1, 2, 1, 1, 33, 64),
    Case(1, 2, 1, 1, 33, 64, normalize="all"),
    Case(1, 1, 1, 9, 33, 64, normalize="all"),
    Case(1, 4, 2, 37, 21, 64, normalize="all", causal=True),
    Case(1, 2, 1, 6, 6, 32, causal=True),
)


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch):
    if request.param == "native" and (reason := available("edge_attention")):
        pytest.skip(reason)
    monkeypatch.setenv("SURGERY_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize("case", LARGE + SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_error_is_bounded_by_that_of_eager(backend, dtype, case):
    assert_accurate(case, dtype)


def test_plain_pytorch_takes_fp16():
    for case in (LARGE[1], LARGE[9]):
        assert_accurate(case, torch.float16)


def test_plain_pytorch_takes_fp64():
    for case in (LARGE[1], LARGE[9]):
        inputs, edges = case.inputs(torch.float64), case.edges().tensors()
        ours, exact = (results(each, inputs, edges, case.rest) for each in (OPERATOR, reference))
        for mine, truth in zip(ours, exact, strict=True):
            torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("normalize", ["kept", "all"])
def test_one_query_and_one_key(backend, normalize):
    """The only weight is 1: the value comes back, and no gradient is left for the score but that of lse."""
    q, k, v = (torch.randn(1, 2, 1, 32, requires_grad=True) for _ in range(3))
    edges = Edges.from_mask(torch.ones(1, 1, dtype=torch.bool)).tensors()
    out, lse = OPERATOR(q, k, v, edges, 0.5, normalize, False)
    dq, dk, dv = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    torch.testing.assert_close(out, v)
    torch.testing.assert_close(lse, (q * k).sum(-1) * 0.5)
    for mine, truth in ((dq, k * 0.5), (dk, q * 0.5), (dv, torch.ones_like(v))):
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", ["kept", "all"])
def test_gradients_are_those_of_finite_differences(normalize):
    case = Case(1, 2, 1, 4, 5, 3, patterns=2, density=0.5, normalize=normalize)
    inputs = [each.detach().requires_grad_() for each in case.inputs(torch.float64)]
    edges = case.edges().tensors()
    for function in (reference, OPERATOR):
        assert torch.autograd.gradcheck(lambda *qkv: function(*qkv, edges, *case.rest)[0], inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", [LARGE[2], LARGE[8]], ids=str)
def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, dtype, case):
    case = replace(case, queries=1500, density=0.02)
    inputs, edges = case.inputs(dtype), case.edges().tensors()
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            runs.append(results(OPERATOR, inputs, edges, case.rest))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for run in runs[1:] for first, other in zip(runs[0], run, strict=True))


def test_a_listed_key_of_a_query_that_counts_none_has_no_weight(backend):
    """Causal, more queries than keys: the first four queries see no key, whatever is listed for them."""
    case = Case(1, 2, 1, 9, 5, 16, density=1.0, normalize="all", causal=True)
    torch.manual_seed(0)
    inputs = case.inputs(torch.float32)
    edges = Edges.from_mask(torch.ones(9, 5, dtype=torch.bool).tril(-2)).tensors()
    ours, exact = (results(each, inputs, edges, case.rest) for each in (OPERATOR, reference))
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, truth)


@pytest.mark.parametrize("factor", [40.0, -3.0, 0.0])
def test_scores_far_from_zero(backend, factor):
    """Large, negative and zero scales: exp neither overflows nor loses a row."""
    case = Case(1, 2, 2, 64, 80, 64, patterns=2)

    def draw(seed: int) -> Draw:
        torch.manual_seed(seed)
        inputs, edges = case.inputs(torch.float32), case.edges().tensors()
        exact = reference(*(each.double() for each in inputs), edges, factor, "kept", False)
        eager = reference(*inputs, edges, factor, "kept", False)
        return Draw(lambda: OPERATOR(*inputs, edges, factor, "kept", False), eager, exact)

    assert_as_exact_as_eager(draw, {"out": 2, "lse": 2}, rows=128)


def test_all_edges_are_dense_attention(backend):
    q, k, v = (torch.randn(2, 4, 50, 64) for _ in range(3))
    edges = Edges.from_mask(torch.ones(50, 50, dtype=torch.bool).tril())
    for normalize in ("kept", "all"):
        ours = edge_attention(q, k, v, edges, normalize=normalize, causal=normalize == "all")
        torch.testing.assert_close(ours, scaled_dot_product_attention(q, k, v, is_causal=True))


def test_normalising_over_all_keys_weakens_what_is_kept(backend):
    q, k, v = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8)
    edges = Edges.from_mask(torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool))
    outs = {name: edge_attention(q, k, v, edges, normalize=name)[0, 0, :, 0].tolist() for name in ("kept", "all")}
    assert outs == {"kept": [1.0, 1.0], "all": [0.25, 0.5]}
    causal = edge_attention(q, k, v, edges, normalize="all", causal=True)[0, 0, :, 0]
    torch.testing.assert_close(causal, torch.tensor([1 / 3, 0.5]))


def test_keys_beyond_two_to_the_31_elements():
    """A row stride of 2^30: the third key lies past what 32 bits can count. Pages that nobody reads take no memory."""
    if reason := available("edge_attention"):
        pytest.skip(reason)
    stride = 2**30
    with mmap.mmap(-1, (2 * stride + 64) * 2) as pages:
        k = torch.frombuffer(pages, dtype=torch.bfloat16).as_strided((1, 1, 3, 32), (0, 0, stride, 1))
        k.copy_(torch.randn(1, 1, 3, 32))
        q, edges = torch.randn(1, 1, 3, 32).bfloat16(), Edges.from_mask(torch.ones(3, 3, dtype=torch.bool))
        out = edge_attention(q, k, k, edges)
        assert torch.equal(out, edge_attention(q, k.contiguous(), k.contiguous(), edges))
        del k


@pytest.mark.parametrize("case", [SMALL[1], SMALL[2]], ids=str)
def test_operator_is_well_formed(case):
    inputs = tuple(each.detach().requires_grad_() for each in case.inputs(torch.float32))
    edges = case.edges().tensors()
    torch.library.opcheck(OPERATOR.default, (*inputs, edges, *case.rest))
    out, lse = OPERATOR(*inputs, edges, *case.rest)
    given = [each.detach() for each in (torch.ones_like(out), torch.ones_like(lse), *inputs, out, lse)]
    torch.library.opcheck(torch.ops.surgery.edge_attention_backward.default, (*given, edges, *case.rest))


def test_compiles_whole_and_exports_with_any_batch():
    case = Case(2, 4, 2, 20, 20, 32)
    edges = case.edges()

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return edge_attention(q * 2, k, v, edges).relu()

    inputs = [each.detach().contiguous() for each in case.inputs(torch.float32)]
    leaves = [[each.clone().requires_grad_() for each in inputs] for _ in range(2)]
    compiled = torch.compile(Attention(), fullgraph=True)(*leaves[0])
    eager = Attention()(*leaves[1])
    torch.testing.assert_close(compiled, eager)
    compiled.sum().backward()
    eager.sum().backward()
    for mine, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(Attention(), tuple(inputs), dynamic_shapes=[{0: batch}] * 3, strict=False)
    more = [torch.randn(5, *each.shape[1:]) for each in inputs]
    assert torch.equal(exported.module()(*more), Attention()(*more))


def test_flops_count_the_edges():
    case = Case(2, 4, 2, 20, 30, 32, patterns=4)
    inputs, edges = case.inputs(torch.float32), case.edges()
    with FlopCounterMode(display=False) as counted:
        edge_attention(*inputs, edges)
    assert counted.get_total_flops() == 4 * 32 * edges.idx.numel() * 2
    with FlopCounterMode(display=False) as counted:
        edge_attention(*inputs, edges, normalize="all")
    assert counted.get_total_flops() == 4 * 32 * edges.idx.numel() * 2 + 2 * 2 * 4 * 20 * 30 * 32


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [([0, 0], [1, 1], "is a duplicate"), ([0, 0], [2, 1], "is unsorted"), ([0, 1], [0, 3], "out of range")],
)
def test_lists_that_are_not_sorted_and_unique_are_rejected(query, key, message):
    with pytest.raises(ValueError, match=message):
        Edges.from_pairs(torch.zeros(2), torch.tensor(query), torch.tensor(key), queries=2, keys=3)


WRONG = (
    ({"k": (1, 2, 6, 8)}, {}, "laid out for 4 queries × 5 keys"),
    ({"v": (1, 2, 5, 16)}, {}, "k and v have one shape"),
    ({"k": (1, 3, 5, 8), "v": (1, 3, 5, 8)}, {}, "not a multiple of 3 key heads"),
    ({"q": (1, 5, 4, 8), "k": (1, 5, 5, 8), "v": (1, 5, 5, 8)}, {}, "not 1, heads, or batch"),
    ({}, {"normalize": "some"}, "one of kept, all"),
)


@pytest.mark.parametrize(("shapes", "options", "message"), WRONG)
def test_what_does_not_fit_is_refused(shapes, options, message):
    shapes = {"q": (1, 4, 4, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8)} | shapes
    edges = Edges.from_mask(torch.ones(4, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        edge_attention(*(torch.zeros(shapes[name]) for name in "qkv"), edges, **options)


def test_an_asked_for_kernel_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "native")
    q, edges = torch.zeros(1, 1, 2, 8, dtype=torch.float16), Edges.from_mask(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="native: takes fp32 and bf16"):
        edge_attention(q, q, q, edges)
