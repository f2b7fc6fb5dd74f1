"""Attention over listed edges in Triton: under the interpreter without a GPU, the same cases and bf16 on one."""

import mmap

import pytest
import torch
from edge_attention_cases import OPERATOR, Case, assert_accurate, results
from surgery.kernels.layouts.edges import Edges
from surgery.kernels.operators.edge_attention import edge_attention
from surgery.kernels.reference.edge_attention import edge_attention as reference

CASES = (
    (Case(2, 2, 2, 5, 9, 32, patterns=2, density=0.0), "fp16"),
    (Case(2, 4, 4, 4, 20, 32, patterns=4, density=0.7), "fp32"),
    (Case(1, 4, 2, 10, 19, 64), "fp32"),
    (Case(1, 16, 1, 5, 20, 80, density=0.6), "fp32"),
    (Case(1, 4, 1, 8, 18, 80, patterns=4, causal=True), "fp32"),
    (Case(1, 4, 1, 8, 18, 80, patterns=4, causal=True), "fp16"),
    (Case(1, 2, 1, 10, 33, 128, density=1.0), "fp32"),
    (Case(1, 2, 1, 10, 33, 128, density=1.0), "fp16"),
    (Case(2, 2, 2, 5, 12, 256, patterns=4), "fp32"),
    (Case(1, 2, 1, 1, 33, 64), "fp32"),
    (Case(1, 2, 1, 1, 33, 64, normalize="all"), "fp32"),
    (Case(2, 4, 2, 9, 20, 32, patterns=8, normalize="all"), "fp32"),
    (Case(1, 1, 1, 9, 33, 64, normalize="all"), "fp32"),
    (Case(1, 4, 2, 37, 21, 64, normalize="all", causal=True), "fp32"),
    (Case(1, 4, 2, 37, 21, 64, normalize="all", causal=True), "fp16"),
    (Case(1, 2, 1, 21, 37, 80, patterns=2, normalize="all", causal=True), "fp32"),
    (Case(1, 2, 1, 21, 37, 80, patterns=2, normalize="all", causal=True), "fp16"),
    (Case(1, 1, 1, 9, 34, 128, normalize="all"), "fp32"),
    (Case(1, 2, 2, 18, 18, 256, normalize="all", causal=True), "fp32"),
    (Case(1, 24, 2, 4, 12, 40), "fp32"),  # twelve heads to a program, rows made longer
    (Case(1, 34, 1, 3, 9, 20, normalize="all"), "fp32"),  # two heads to a program: 34 do not fit, 17 either
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("SURGERY_KERNELS", "triton")


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)
def test_error_is_bounded_by_that_of_eager(case, dtype, device):
    for each in (dtype,) if device == "cpu" else (dtype, "bf16"):
        assert_accurate(case, DTYPES[each], device, own=-(-16 // (case.batch * case.heads * case.queries)))


def test_one_query_and_one_key(device):
    """The only weight is 1: the value comes back, and no gradient is left for the score but that of lse."""
    q, k, v = (torch.randn(1, 2, 1, 32, device=device, requires_grad=True) for _ in range(3))
    edges = Edges.from_mask(torch.ones(1, 1, dtype=torch.bool, device=device)).tensors()
    out, lse = OPERATOR(q, k, v, edges, 0.5, "kept", False)
    dq, dk, dv = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    torch.testing.assert_close(out, v)
    torch.testing.assert_close(lse, (q * k).sum(-1) * 0.5)
    for mine, truth in ((dq, k * 0.5), (dk, q * 0.5), (dv, torch.ones_like(v))):
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bits(device):
    case = Case(1, 2, 1, 9, 40, 32, patterns=2, normalize="all")
    inputs, edges = case.inputs(torch.float32, device), case.edges(device).tensors()
    first, second = (results(OPERATOR, inputs, edges, case.rest) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_listed_key_of_a_query_that_counts_none_has_no_weight(device):
    """Causal, more queries than keys: the first four queries see no key, whatever is listed for them."""
    case = Case(1, 2, 1, 9, 5, 16, density=1.0, normalize="all", causal=True)
    torch.manual_seed(0)
    inputs = case.inputs(torch.float32, device)
    edges = Edges.from_mask(torch.ones(9, 5, dtype=torch.bool).tril(-2)).to(device).tensors()
    ours, exact = (results(each, inputs, edges, case.rest) for each in (OPERATOR, reference))
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, truth)


@pytest.mark.parametrize("factor", [40.0, -3.0])
def test_scores_far_from_zero(factor, device):
    case = Case(1, 1, 1, 8, 40, 32)
    q, k, v = case.inputs(torch.float32, device)
    edges = case.edges(device).tensors()
    out, lse = OPERATOR(q, k, v, edges, factor, "kept", False)
    scores = (q.double() @ k.double().transpose(-1, -2)) * factor
    scores = scores.masked_fill(~case_mask(edges, 8, 40), float("-inf"))
    torch.testing.assert_close(out.double(), scores.softmax(-1).nan_to_num(0) @ v.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-4)


def case_mask(edges, queries, keys):
    mask = torch.zeros(queries, keys, dtype=torch.bool, device=edges[1].device)
    mask[torch.repeat_interleave(torch.arange(queries, device=mask.device), edges[0].diff()), edges[1].long()] = True
    return mask


@pytest.mark.parametrize("heads", [1, 2])
def test_keys_beyond_two_to_the_31_elements(heads, device):
    """A row stride of 2^30: the third key lies past what 32 bits can count. Pages that nobody reads take no memory."""
    if device == "cuda":
        pytest.skip("would take 4 GiB of the GPU's memory")
    stride = 2**30
    q, edges = torch.randn(1, heads, 3, 32).half(), Edges.from_mask(torch.ones(3, 3, dtype=torch.bool))
    with mmap.mmap(-1, (2 * stride + 64) * 2) as pages:
        k = torch.frombuffer(pages, dtype=torch.float16).as_strided((1, 1, 3, 32), (0, 0, stride, 1))
        k.copy_(torch.randn(1, 1, 3, 32))
        out = edge_attention(q, k, k, edges)
        assert torch.equal(out, edge_attention(q, k.contiguous(), k.contiguous(), edges))
        del k
