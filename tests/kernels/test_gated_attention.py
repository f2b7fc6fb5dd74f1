"""Gated attention against its fp64 reference, on every backend the machine has."""

import os

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager, softmax_terms
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery.kernels.operators.gated_attention import gated_attention
from surgery.kernels.reference import gated_attention as reference
from surgery.kernels.reference.gated_noise import uniform

MARGIN = 2e-5
"""No logit of a test lies closer to the gate's threshold: rounding then opens the same gates everywhere."""

# batch, query heads, key heads, queries, keys, head dim
SHAPES = {
    "one": (1, 1, 1, 1, 1, 16),
    "gqa": (2, 6, 2, 19, 35, 32),
    "more queries than keys": (1, 2, 1, 40, 17, 64),
    "80 wide": (1, 2, 2, 33, 33, 80),
    "128 wide": (1, 1, 1, 35, 48, 128),
    "256 wide": (1, 1, 1, 17, 36, 256),
    "long": (1, 2, 2, 70, 150, 24),
}
# gates, seeded, temperature, causal, masked
WAYS = {
    "hard": ("hard", False, 1.0, False, False),
    "hard causal": ("hard", False, 1.0, True, False),
    "sampled": ("sampled", True, 1.0, True, False),
    "sampled masked warm": ("sampled", True, 0.5, False, True),
    "soft noisy": ("soft", True, 1.0, True, True),
    "soft": ("soft", False, 0.7, False, False),
}
CASES = [
    *(("one", way) for way in WAYS),
    *(("gqa", way) for way in WAYS),
    *((shape, way) for shape in SHAPES if shape not in ("one", "gqa") for way in ("hard causal", "sampled")),
    ("more queries than keys", "soft noisy"),
]
TRITON_CASES = [
    ("one", "sampled"),
    ("gqa", "sampled masked warm"),
    ("gqa", "hard causal"),
    ("more queries than keys", "soft noisy"),
    ("80 wide", "sampled"),
    ("128 wide", "soft"),
    ("256 wide", "sampled"),
]


def guarded(shape, dtype, device, generator):
    """Random numbers, [B, S, H, D] seen as [B, H, S, D], inside a parent full of NaN."""
    batch, heads, rows, dim = shape
    parent = torch.full((batch, rows + 3, heads, dim + 8), float("nan"), dtype=dtype, device=device)
    parent[:, 1:-2, :, 4:-4] = torch.randn(batch, rows, heads, dim, generator=generator).to(dtype)
    return parent[:, 1:-2, :, 4:-4].transpose(1, 2)


def inputs(shape, way, dtype, device, first=0):
    """The arguments of a case, drawn anew until no logit is at the threshold."""
    batch, heads, groups, queries, keys, dim = SHAPES[shape]
    gates, seeded, temperature, causal, masked = WAYS[way]
    for attempt in range(first, first + 50):
        generator = torch.Generator().manual_seed(attempt)
        q = guarded((batch, heads, queries, dim), dtype, device, generator)
        k, v = (guarded((batch, groups, keys, dim), dtype, device, generator) for _ in range(2))
        bias = (torch.randn(batch * heads if masked else heads, generator=generator) - 0.5).to(device)
        key_mask = (torch.rand(batch, keys, generator=generator) > 0.3).to(device) if masked else None
        seed = torch.tensor(attempt * 7_000_000_007 - 3, device=device) if seeded else None
        options = {"causal": causal, "gates": gates, "temperature": temperature, "seed": seed, "key_mask": key_mask}
        if margin(q, k, bias, options) > MARGIN:
            return (q, k, v, bias), options
    raise AssertionError("every draw has a logit at the threshold")


def margin(q, k, bias, options):
    s, seen = reference.scores(q.double(), k.double(), None, options["causal"], options["key_mask"], None)
    z = s + reference.per_head(bias, s)
    shaken = z if options["seed"] is None else z + reference.noise(z, options["seed"])
    near = torch.cat([z[z.isfinite()], shaken[shaken.isfinite()]])
    return float(near.abs().min()) if near.numel() else 1.0


def gradients(run, tensors, cotangents):
    """Outputs and gradients of `run`, a function of tensors that returns (out, lse, expected, kept)."""
    leaves = [each.detach().requires_grad_() for each in tensors]
    out, lse, expected, kept = run(*leaves)
    finite = torch.where(lse == reference.NEVER, 0, lse)
    pairs = zip((out, finite, expected), cotangents, strict=True)
    total = sum((made.to(given.dtype) * given).sum() for made, given in pairs)
    return (out.detach(), finite.detach(), expected.detach(), kept), torch.autograd.grad(total, leaves)


def draw_of(tensors, options):
    """The operator beside eager PyTorch in the same dtype and the reference in fp64: out, lse, expected, gradients.

    Eager takes the reference's open gates: what it would decide otherwise in a low dtype is not an error to allow us.
    """
    q, k, _, bias = tensors
    generator = torch.Generator().manual_seed(99)
    shapes = (q.shape, q.shape[:3], q.shape[:2])
    cotangents = [torch.randn(shape, generator=generator).to(q.device, torch.float64) for shape in shapes]
    exact = [each.double() for each in tensors]
    s, seen = reference.scores(exact[0], exact[1], None, options["causal"], options["key_mask"], None)
    z = s + reference.per_head(exact[3], s)
    decided = (z if options["seed"] is None else z + reference.noise(z, options["seed"])) > 0

    def operator(*leaves):
        made = gated_attention(*leaves, **options)
        return made.out, made.lse, made.expected, made.kept

    def ours():
        outputs, grads = gradients(operator, tensors, cotangents)
        assert torch.equal(outputs[3].cpu(), truth[3].cpu())
        return [*outputs[:3], *grads]

    def naive(*leaves):
        return reference.gated_attention(*leaves, **options, opened=decided)

    truth, true_grads = gradients(lambda *leaves: reference.gated_attention(*leaves, **options), exact, cotangents)
    eager, eager_grads = gradients(naive, tensors, cotangents)
    weights = s.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0)
    terms = softmax_terms(weights, tensors[:3], cotangents[0], *truth[:2], q.shape[-1] ** -0.5)
    return Draw(ours, [*eager[:3], *eager_grads], [*truth[:3], *true_grads], [None, None, None, *terms, None])


TIMES = {"out": 2, "lse": 2, "expected": 2, "dq": 3, "dk": 3, "dv": 3, "dbias": 3}


def hold(shape, way, dtype, device, own=None):
    """Errors at most 2 × (outputs) and 3 × (gradients) of same-dtype eager's."""
    batch, heads, _, queries, _, _ = SHAPES[shape]
    assert_as_exact_as_eager(
        lambda seed: draw_of(*inputs(shape, way, dtype, device, 100 * seed)), TIMES, batch * heads * queries, own
    )


def dtypes(device):
    return (torch.float32, torch.bfloat16) if device == "cpu" else (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(("shape", "way"), CASES)
def test_operator_is_as_exact_as_eager(shape, way, device):
    for dtype in dtypes(device):
        hold(shape, way, dtype, device)


@pytest.mark.parametrize(("shape", "way"), [("gqa", way) for way in WAYS] + [("long", "sampled")])
def test_torch_path_is_as_exact_as_eager(shape, way, device, monkeypatch):
    from surgery.kernels.cpu import gated_attention as cpu

    monkeypatch.setenv("SURGERY_KERNELS", "torch")
    monkeypatch.setattr(cpu, "BUDGET", 4000)
    for dtype in (torch.float32, torch.float16):
        hold(shape, way, dtype, device, own=2)


@pytest.mark.parametrize(("shape", "way"), TRITON_CASES)
def test_triton_is_as_exact_as_eager(shape, way, device, monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    for dtype in (torch.float32, torch.float16) if shape == "gqa" else (torch.float32,):
        # A single head has a single expected count a draw, and the error of a single number is chance.
        hold(shape, way, dtype, device, own=8 if SHAPES[shape][:2] == (1, 1) else 1)


@pytest.mark.parametrize("way", WAYS)
def test_closed_form_gradients_are_those_of_autograd(way):
    tensors, options = inputs("gqa", way, torch.float64, "cpu")
    leaves = [each.double().requires_grad_() for each in tensors]
    out, lse, expected, _ = reference.gated_attention(*leaves, **options)
    given = torch.randn_like(out), torch.randn_like(lse), torch.randn_like(expected)
    total = (out * given[0]).sum() + (lse.masked_fill(lse == reference.NEVER, 0) * given[1]).sum()
    want = torch.autograd.grad(total + (expected * given[2]).sum(), leaves)
    with torch.no_grad():
        got = reference.gated_attention_backward(*given, *leaves, out, lse, **options)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("causal", "seed"), [(True, None), (False, 11)])
def test_reference_passes_gradcheck_with_soft_gates(causal, seed):
    torch.manual_seed(0)
    leaves = [torch.randn(1, 2, 4, 3), torch.randn(1, 1, 5, 3), torch.randn(1, 1, 5, 3), torch.randn(2)]
    leaves = [each.double().requires_grad_() for each in leaves]
    seed = None if seed is None else torch.tensor(seed)

    def run(*args):
        return reference.gated_attention(*args, causal=causal, gates="soft", temperature=0.8, seed=seed)[:3]

    assert torch.autograd.gradcheck(run, leaves)


def test_straight_through_bias_gradient_is_that_of_the_soft_path(device):
    """Finite differences of the soft forward, whose noise the sampled backward draws again."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 2, 9, 8, dtype=torch.float64, device=device) for _ in range(3))
    bias, given = torch.zeros(2, dtype=torch.float64, device=device), torch.randn(2, 2, 9, 8, device=device)

    def soft(shift):
        return (gated_attention(q, k, v, bias + shift, gates="soft", seed=5, causal=True).out * given).sum()

    leaf = bias.clone().requires_grad_()
    total = (gated_attention(q, k, v, leaf, gates="sampled", seed=5, causal=True).out * given).sum()
    (found,) = torch.autograd.grad(total, leaf)
    for head in range(2):
        step = torch.zeros_like(bias)
        step[head] = 1e-5
        assert abs(float((soft(step) - soft(-step)) / 2e-5 - found[head])) < 1e-7


@pytest.mark.parametrize("backend", ["native", "torch", "triton"])
def test_open_gates_are_dense_attention_and_closed_ones_nothing(backend, device, monkeypatch):
    if backend == "native" and device != "cpu":
        pytest.skip("the native kernel is a CPU's")
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 37, 32, device=device) for _ in range(3))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    wide = torch.full((2,), 50.0, device=device)
    opened = gated_attention(q, k, v, wide, causal=True)
    torch.testing.assert_close(opened.out, dense, rtol=0, atol=1e-6)
    assert opened.kept.tolist() == [[37 * 19, 37 * 19]]
    closed = gated_attention(q, k, v, -wide, causal=True)
    assert not closed.out.any() and not closed.kept.any()
    assert gated_attention(q, k, v, wide, causal=True, gates="sampled", seed=3).kept.tolist() == opened.kept.tolist()


def test_hashed_uniforms_are_these_numbers():
    """Pins the definition: all backends, and models trained with a seed, depend on it."""
    heads, rows, columns = torch.tensor([0, 9]), torch.tensor([0, 70_000]), torch.tensor([0, 3])
    drawn = uniform(torch.tensor(-(2**40) - 1), heads, rows, columns)
    assert (drawn.double() * 2**23 - 0.5).long().tolist() == PINNED


PINNED = [[[323354, 6511905], [8272912, 1419488]], [[7037511, 4266367], [2826251, 6033414]]]


@settings(max_examples=20, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_noise_is_uniform_and_without_structure(seed):
    count = torch.arange(96)
    u = uniform(torch.tensor(seed), count[:2], count, count) - 0.5
    edge = 6 / u.numel() ** 0.5
    assert abs(float(u.mean())) * 12**0.5 < edge and abs(float(u.var()) * 12 - 1) < edge
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[..., 1:], u[..., :-1])):
        assert abs(float((a * b).mean())) * 12 < edge * 2
    squares = u[:, 1:, 1:] * u[:, :-1, 1:] * u[:, 1:, :-1] * u[:, :-1, :-1]
    assert abs(float(squares.mean())) * 144 < edge * 2


@pytest.mark.skipif(os.environ.get("SURGERY_KERNELS") is not None, reason="a backend is forced")
def test_backends_draw_the_same_gates(device, monkeypatch):
    """Values that are one-hot and a softmax that is flat: the output shows every gate."""
    keys = torch.eye(32, device=device)[None, None]
    q, k, bias = torch.zeros(2, 2, 32, 32, device=device), torch.zeros(2, 2, 32, 32, device=device), torch.zeros(2)
    drawn = {}
    for backend in ("reference", "torch", "native", "triton"):
        if backend == "native" and device != "cpu":
            continue
        monkeypatch.setenv("SURGERY_KERNELS", backend)
        made = gated_attention(q, k, keys.expand(2, 2, -1, -1), bias.to(device), gates="sampled", seed=2**35 + 1)
        drawn[backend] = made.out > 0
    assert 0.4 < float(drawn["reference"].float().mean()) < 0.6
    assert all(torch.equal(each, drawn["reference"]) for each in drawn.values())
