"""Gates as they are run, trained and proven: thresholds, gradients, shares, and a witness that catches a wrong gate."""

from dataclasses import replace

import pytest
import torch
from test_write_out_attention import BARE, stranger

from surgery.anatomy import inspect
from surgery.anatomy.attention_form import forms_of
from surgery.passes.gate_edges import Gate, GateEdges
from surgery.passes.runner import run_passes
from surgery.passes.sample_gates import SampleGates, as_padding, attend, gated
from surgery.passes.witness_gates import WitnessGates, allowed
from surgery.verify.outputs import tensors_of

CLAUSE = ("sparsify attention via gates", "my.surgery:1:1")


def gates_of(anatomy, number: float, **changes) -> tuple[Gate, ...]:
    found = []
    for site in anatomy.of_kind("attention"):
        forms = forms_of(anatomy.graph_module, site)
        calls = tuple(form.product.name for form in forms)
        found.append(Gate(site.path, calls, forms[0].heads, torch.full((forms[0].count,), number), **changes))
    return tuple(found)


def first(graph_module, inputs):
    return tensors_of(graph_module(**inputs))[0].float()


@pytest.fixture(scope="module")
def anatomies():
    bare = {"x": torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))}
    found = {name: (inspect(BARE[name], bare), bare) for name in ("causal", "grouped", "a query that sees nothing")}
    for name in ("LlamaForCausalLM", "Gemma2ForCausalLM"):
        model, inputs = stranger(name, torch.float32)
        found[name] = inspect(model, inputs), inputs
    return found


NAMES = ("causal", "grouped", "a query that sees nothing", "LlamaForCausalLM", "Gemma2ForCausalLM")


@pytest.mark.parametrize("name", NAMES)
def test_open_gates_change_nothing_and_closed_ones_leave_nothing(anatomies, name):
    anatomy, inputs = anatomies[name]
    dense = first(anatomy.graph_module, inputs)
    for kind in (GateEdges, WitnessGates):
        opened = run_passes(anatomy.graph_module, [kind(*CLAUSE, gates_of(anatomy, 50.0))])
        assert (first(opened, inputs) - dense).abs().max() <= 1e-6 * max(1, dense.abs().max())
    for normalize in ("all", "kept"):
        closed = run_passes(anatomy.graph_module, [GateEdges(*CLAUSE, gates_of(anatomy, -50.0), normalize)])
        assert torch.isfinite(first(closed, inputs)).all()
        if name in BARE:  # nothing but the bias of the layer that joins the heads
            assert (first(closed, inputs) - BARE[name].o.bias).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ("causal", "grouped"))
def test_lowered_is_the_same_up_to_rounding_and_the_witness_agrees(anatomies, name):
    anatomy, inputs = anatomies[name]
    plain, lowered = (gates_of(anatomy, 0.1, lowered=each) for each in (False, True))
    outs = [first(run_passes(anatomy.graph_module, [GateEdges(*CLAUSE, gates)]), inputs) for gates in (plain, lowered)]
    assert (outs[0] - outs[1]).abs().max() <= 1e-5 * outs[0].abs().max()
    witnessed = run_passes(anatomy.graph_module, [WitnessGates(*CLAUSE, lowered)])
    assert torch.equal(first(witnessed, inputs), outs[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", ("learned", "magnitude", "random"))
@pytest.mark.parametrize("normalize", ("all", "kept"))
def test_a_right_gate_is_its_witness(anatomies, name, by, normalize):
    anatomy, inputs = anatomies[name]
    gates = gates_of(anatomy, {"learned": 0.0, "magnitude": 0.26, "random": 0.5}[by], by=by)
    ours, theirs = (
        first(run_passes(anatomy.graph_module, [kind(*CLAUSE, gates, normalize)]), inputs)
        for kind in (GateEdges, WitnessGates)
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, first(anatomy.graph_module, inputs))


def test_a_wrong_gate_is_not_its_witness():
    """One edge more, kept where its score is clearly under the threshold."""
    q, k, v = (torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    logits = (q @ k.transpose(-2, -1)) / 2
    bias, weights = torch.zeros(2), logits.softmax(-1)
    kept = torch.where(logits > 0, weights, 0.0)
    wrong = kept.clone()
    edge = tuple((logits == logits[logits < -0.1].max()).nonzero()[0])
    wrong[edge] = weights[edge]
    given = (q, k, v, None, bias, 0.5, False, (2,), "learned", 0, "all")
    assert torch.equal(allowed(kept @ v, *given), kept @ v)
    assert not torch.equal(allowed(wrong @ v, *given), wrong @ v)


def test_an_edge_at_the_threshold_may_fall_either_way():
    q, k, v = (torch.randn(1, 1, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    logits = (q @ k.transpose(-2, -1)) / 2
    bias = -logits[0, 0, 3, 1].reshape(1)  # this edge lies on it
    weights = logits.softmax(-1)
    for kept in (logits + bias > 0, logits + bias >= 0, logits + bias > 1e-7):
        kept = kept.clone()
        for fate in (True, False):
            kept[0, 0, 3, 1] = fate
            out = torch.where(kept, weights, 0.0) @ v
            assert torch.equal(allowed(out, q, k, v, None, bias, 0.5, False, (1,), "learned", 0, "all"), out)


def test_the_biass_gradient_is_that_of_the_soft_path():
    """Straight through: hard gates ahead, but what comes back is the derivative of sigmoid(s + b + n); and of the share
    that of sigmoid(s + b), with the slope from afar added, of which the spread τ is held."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 4.0, 9.0]).view(3, 1, 1)
    weights, values = logits.softmax(-1), torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    bias = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    seed = torch.tensor(7)
    kept, share = gated(logits, weights, bias, seed, (3,), "all")
    (kept @ values).sum().backward(retain_graph=True)
    straight, bias.grad = bias.grad, None
    share.sum().backward()
    paid = bias.grad
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(7)).clamp(1e-7, 1 - 1e-7).logit()

    def soft(b):
        return ((weights * (logits + b.view(3, 1, 1) + noise).sigmoid()) @ values).sum()

    spread = logits.std((0, -1, -2), correction=0, keepdim=True).clamp_min(1.0)

    def expected(b):
        z = logits + b.view(3, 1, 1)
        return (z.sigmoid() + (z / spread).sigmoid()).mean((-1, -2)).sum()

    torch.testing.assert_close(share, (logits + bias.view(3, 1, 1)).sigmoid().mean((-1, -2)))
    for head in range(3):
        step = torch.zeros(3, dtype=torch.float64).index_fill(0, torch.tensor(head), 1e-5)
        for function, slope in ((soft, straight), (expected, paid)):
            numeric = (function(bias.detach() + step) - function(bias.detach() - step)) / 2e-5
            assert abs(numeric - slope[head]) <= 1e-6 * max(1, abs(numeric))


def test_without_noise_the_training_form_is_the_one_that_is_kept(anatomies):
    for name in NAMES:
        anatomy, inputs = anatomies[name]
        sampled = run_passes(anatomy.graph_module, [SampleGates(*CLAUSE, gates_of(anatomy, 0.0))])
        kept = run_passes(anatomy.graph_module, [GateEdges(*CLAUSE, gates_of(anatomy, 0.0))])
        outputs, penalty = sampled(**inputs)
        ours, theirs = tensors_of(outputs)[0].float(), first(kept, inputs)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name
        assert 0 < float(penalty) < 1


def test_both_training_forms_count_the_same_edges():
    q, k, v = (torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    keys = torch.ones(2, 6, dtype=torch.bool)
    keys[0, :2] = False
    mask = torch.ones(6, 6, dtype=torch.bool).tril() & keys[:, None, None]
    for seed in (torch.tensor(-1), torch.tensor(3)):
        bias = torch.full((4,), 0.2)
        fast = attend(q, k, v, mask, bias, seed, 0.3, False)
        added = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
        slow = attend(q, k, v, added, bias, seed, 0.3, False)
        assert torch.allclose(fast[1], slow[1], atol=1e-6)
        if seed < 0:
            assert torch.allclose(fast[0][:, :, 2:], slow[0][:, :, 2:], atol=1e-5)


def test_a_mask_is_read_as_padding_only_where_it_is_no_more():
    triangle = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    keys = torch.tensor([True, True, False, True, True]).view(1, 1, 1, 5)
    assert as_padding(triangle) == (True, None)
    assert as_padding(torch.ones_like(triangle)) == (False, None)
    causal, seen = as_padding(triangle & keys)
    assert causal and torch.equal(seen, keys[:, 0, 0])
    window = triangle & ~triangle.tril(-3)
    assert as_padding(window) is None and as_padding(triangle.float()) is None


def test_a_gate_may_be_kept_by_another_name(anatomies):
    anatomy, _ = anatomies["causal"]
    (gate,) = gates_of(anatomy, 0.0)
    assert gate.tensor.endswith("gate_bias") and replace(gate, by="random").tensor.endswith("gate_share")
