"""Gated attention as an operator: opcheck, compile, export, determinism, edges of its domain, what it refuses."""

import pytest
import torch
from surgery.kernels.operators.gated_attention import gated_attention
from surgery.kernels.reference import gated_attention as reference
from torch.utils.flop_counter import FlopCounterMode

OPERATOR = torch.ops.surgery.gated_attention.default
BACKWARD = torch.ops.surgery.gated_attention_backward.default


def inputs(device, batch=2, heads=4, groups=2, queries=9, keys=13, dim=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, queries, dim), (batch, groups, keys, dim), (batch, groups, keys, dim), (heads,)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(
    ("gates", "seeded", "masked", "count"),
    [("sampled", True, True, True), ("hard", False, False, True), ("hard", False, False, False)],
)
def test_opcheck(gates, seeded, masked, count, device):
    q, k, v, bias = inputs(device)
    seed = torch.tensor(3, device=device) if seeded else None
    key_mask = torch.arange(13, device=device).expand(2, -1) < torch.tensor([[13], [5]], device=device)
    arguments = (seed, key_mask if masked else None, 0.25, True, gates, 1.0, count)
    torch.library.opcheck(OPERATOR, (q, k, v, bias, *arguments))


def test_opcheck_of_the_backward(device):
    q, k, v, bias = (each.detach() for each in inputs(device))
    seed = torch.tensor(3, device=device)
    out, lse, expected, _ = OPERATOR(q, k, v, bias, seed, None, 0.25, True, "sampled", 1.0, True)
    given = torch.randn_like(out), torch.randn_like(lse), torch.randn_like(expected)
    torch.library.opcheck(BACKWARD, (*given, q, k, v, bias, seed, None, out, lse, 0.25, True, "sampled", 1.0))


def test_compiles_whole_and_takes_new_seeds_and_batches_without_compiling_again(device):
    compilations = []

    def backend(graph, example):
        compilations.append(graph)
        return graph.forward

    def loss(q, k, v, bias, seed):
        made = gated_attention(q, k, v, bias, causal=True, gates="sampled", seed=seed)
        return made.out.square().mean() + made.expected.mean()

    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=True)
    for batch, seed in ((3, 1), (5, 2), (7, 3)):
        leaves, word = inputs(device, batch=batch), torch.tensor(seed, device=device)
        ours = torch.autograd.grad(compiled(*leaves, word), leaves)
        plain = torch.autograd.grad(loss(*leaves, word), leaves)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert len(compilations) == 1


def test_inductor_compiles_forward_and_backward(device):
    leaves = inputs(device)

    def loss(*args):
        made = gated_attention(*args, gates="soft", seed=4)
        return made.out.sum() + made.expected.sum()

    ours = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    torch.compiler.reset()
    plain = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_exports_with_a_free_batch(device):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, bias, seed):
            made = gated_attention(q, k, v, bias, causal=True, gates="sampled", seed=seed)
            return made.out, made.expected

    args = (*inputs(device), torch.tensor(7, device=device))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Layer(), args, dynamic_shapes=(batch, batch, batch, None, None), strict=False)
    other = (*inputs(device, batch=3), torch.tensor(8, device=device))
    for a, b in zip(program.module()(*other), Layer()(*other), strict=True):
        assert torch.equal(a, b)
    assert "surgery.gated_attention" in program.graph_module.code


@pytest.mark.parametrize("backend", ["native", "torch", "triton"])
def test_two_runs_and_any_number_of_threads_are_equal_to_the_bit(backend, device, monkeypatch):
    if backend == "native" and device != "cpu":
        pytest.skip("the native kernel is a CPU's")
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    leaves = inputs(device, queries=70, keys=40)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2) if backend == "native" else (threads, threads):
            torch.set_num_threads(count)
            made = gated_attention(*leaves, gates="sampled", seed=9, temperature=0.7)
            total = made.out.sum() + made.expected.sum() + made.lse.sum()
            found.append([*(each.detach() for each in made), *torch.autograd.grad(total, leaves)])
    finally:
        torch.set_num_threads(threads)
    for run in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, found[0], strict=True))


@pytest.mark.parametrize("backend", ["native", "torch", "reference", "triton"])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(2, 0, 5), (2, 5, 0), (0, 4, 4)])
def test_empty_inputs(backend, batch, queries, keys, device, monkeypatch):
    if backend == "native" and device != "cpu":
        pytest.skip("the native kernel is a CPU's")
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    leaves = inputs(device, batch=batch, queries=queries, keys=keys)
    made = gated_attention(*leaves, causal=True, gates="sampled", seed=1)
    assert made.out.shape == (batch, 4, queries, 16) and not made.out.any()
    assert bool((made.lse == reference.NEVER).all())
    assert made.expected.shape == made.kept.shape == (batch, 4) and not made.kept.any() and not made.expected.any()
    grads = torch.autograd.grad(made.out.sum() + made.expected.sum(), leaves)
    assert all(grad.shape == leaf.shape and not grad.any() for grad, leaf in zip(grads, leaves, strict=True))


@pytest.mark.parametrize("backend", ["native", "torch", "triton"])
def test_a_batch_whose_keys_are_all_hidden_is_zero(backend, device, monkeypatch):
    if backend == "native" and device != "cpu":
        pytest.skip("the native kernel is a CPU's")
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    leaves = inputs(device)
    key_mask = torch.tensor([[True], [False]], device=device).expand(2, 13)
    made = gated_attention(*leaves, gates="soft", key_mask=key_mask)
    grads = torch.autograd.grad(made.out.sum() + made.expected.sum(), leaves[:3])
    assert not made.out[1].any() and not made.expected[1].any() and bool((made.lse[1] == reference.NEVER).all())
    assert made.out[0].any() and all(not grad[1].any() and grad[0].any() for grad in grads)


def test_counts_can_be_left_out(device):
    leaves = inputs(device)
    counted, bare = gated_attention(*leaves), gated_attention(*leaves, count=False)
    assert bare.expected is None and bare.kept is None
    assert torch.equal(counted.out, bare.out)
    assert torch.autograd.grad(bare.out.sum(), leaves[0])[0].isfinite().all()


def test_hard_gates_give_the_bias_no_gradient_but_the_expected_edges_do(device):
    *tensors, bias = inputs(device)
    made = gated_attention(*tensors, bias)
    assert not torch.autograd.grad(made.out.sum(), bias, retain_graph=True)[0].any()
    assert bool((torch.autograd.grad(made.expected.sum(), bias)[0] > 0).all())


def test_expected_edges_fall_by_descent(device):
    q, k, v, bias = inputs(device)
    before = gated_attention(q, k, v, bias).expected.sum()
    grads = torch.autograd.grad(before, (q, k, bias))
    moved = [leaf - 0.05 * grad for leaf, grad in zip((q, k, bias), grads, strict=True)]
    assert gated_attention(*moved[:2], v, moved[2]).expected.sum() < before


def test_memory_does_not_grow_with_queries_times_keys(device, monkeypatch):
    """The largest tensor that the CPU's path allocates is of the size of q."""
    if device != "cpu":
        pytest.skip("counts allocations of the CPU's path")
    made, allocate = [], torch.empty

    def counted(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        made.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setenv("SURGERY_KERNELS", "native")
    leaves = inputs(device, batch=1, heads=1, groups=1, queries=512, keys=512)
    gated_attention(*leaves, gates="sampled", seed=1).out.sum().backward()
    assert made and max(made) <= 2 * leaves[0].numel()


def test_flops_are_counted(device):
    leaves = inputs(device)
    with FlopCounterMode(display=False) as counter:
        gated_attention(*leaves).out.sum().backward()
    assert counter.get_total_flops() == 14 * 2 * 4 * 9 * 13 * 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gates": "open"}, "gates is one of hard, sampled, soft"),
        ({"gates": "sampled"}, "needs a seed"),
        ({"seed": 3}, "takes no seed"),
        ({"temperature": 0.0}, "temperature is over 0"),
        ({"key_mask": torch.ones(2, 9, dtype=torch.bool)}, r"key_mask is bool \[2, 13\]"),
        ({"bias": torch.zeros(3)}, r"bias is \[4\] or \[8\], got \[3\]"),
        ({"k": torch.zeros(2, 3, 13, 16), "v": torch.zeros(2, 3, 13, 16)}, "not a multiple of 3 key heads"),
        ({"v": torch.zeros(2, 2, 12, 16)}, "k and v have one shape"),
        ({"q": torch.zeros(2, 4, 9, 16, dtype=torch.float64)}, "one floating dtype"),
        ({"gates": "soft", "seed": torch.zeros(2)}, "seed is one int64"),
    ],
)
def test_refuses(change, says):
    arguments = dict(zip(("q", "k", "v", "bias"), inputs("cpu"), strict=True)) | change
    with pytest.raises(ValueError, match=says):
        gated_attention(**arguments)
