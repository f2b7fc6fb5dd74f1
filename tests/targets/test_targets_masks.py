"""Masks of c where it stands: per-vector, in a window of sampling steps; and what is refused."""

import pytest
import strangers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from surgery.anatomy.capture import call
from surgery.anatomy.evaluate import evaluate
from surgery.diagnostics import RefusalError
from surgery.session.parity import parity
from surgery.targets.schedule import Schedule, When, default_times


@pytest.mark.parametrize("side", ["tail", "head"])
@pytest.mark.parametrize("by", ["magnitude", "activation"])
@pytest.mark.parametrize("name", ["Plain", "Guided", "Normed", "AddedToTokens"])
def test_each_vector_loses_its_own(name, by, side):
    model, anatomy = strangers.make(getattr(strangers, name)), strangers.anatomy_of(name)
    made = strangers.rewrite(anatomy, f"prune {side} 5 of class embeddings by {by} scope=per-vector")
    make_c = model.c_norm.register_forward_pre_hook if name == "Normed" else None

    def mask(c):
        score = F.silu(c).abs() if by == "activation" else c.abs()
        return c.scatter(-1, score.topk(5, -1, largest=side == "head").indices, 0.0)

    if make_c:
        make_c(lambda module, inputs: (mask(*inputs),))
    else:
        body = model.body
        model.body = lambda x, c: body(x, mask(c))
    with torch.no_grad():
        assert torch.allclose(call(made.compact, anatomy.inputs), model(**anatomy.inputs), atol=1e-5)


def test_exactly_n_coordinates_are_zero():
    anatomy = strangers.anatomy_of("Axis")
    made = strangers.rewrite(anatomy, "prune tail 7 of class embeddings scope=per-vector")
    (mask,) = [node for node in made.compact.graph.nodes if node.target is torch.ops.aten.scatter.value]
    inputs = {node: anatomy.inputs[node.name] for node in made.compact.graph.nodes if node.op == "placeholder"}
    (masked,) = evaluate(made.compact, [mask], inputs)
    assert (masked == 0).sum(-1).flatten().tolist() == [7, 7]


@pytest.mark.parametrize("name", ["Plain", "Axis"])
@pytest.mark.parametrize(("when", "inside"), [("first 2 steps", (900, 600)), ("last 2 steps", (300, 0))])
@pytest.mark.parametrize("scope", ["shared", "per-vector"])
def test_a_window_masks_inside_alone(name, when, inside, scope):
    anatomy = strangers.anatomy_of(name)
    schedule = Schedule(torch.arange(1000.0), torch.tensor([900.0, 600.0, 300.0, 0.0]))
    spec = f"prune tail 50% of class embeddings by magnitude scope={scope}"
    windowed = strangers.rewrite(anatomy, f"{spec} when {when}", schedule).compact
    always = strangers.rewrite(anatomy, f"{spec} compensate=none" if scope == "shared" else spec, schedule).masked
    with torch.no_grad():
        for time in (900, 600, 300, 0):
            inputs = dict(anatomy.inputs) | {"t": torch.full((2,), float(time))}
            want = always if time in inside else anatomy.graph_module
            assert torch.equal(call(windowed, inputs), call(want, inputs))
        mixed = dict(anatomy.inputs) | {"t": torch.tensor([900.0, 0.0])}
        alone = [dict(mixed) | {"t": torch.full((2,), time)} for time in (900.0, 0.0)]
        rows = [call(windowed, inputs)[row] for row, inputs in enumerate(alone)]
        assert torch.allclose(call(windowed, mixed), torch.stack(rows), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    share=st.integers(0, 96),
    by=st.sampled_from(["greedy", "effect", "activation", "magnitude"]),
    compensate=st.sampled_from(["none", "least-squares"]),
    side=st.sampled_from(["tail", "head"]),
)
def test_masked_equals_compacted(share, by, compensate, side):
    anatomy = strangers.anatomy_of("Plain")
    made = strangers.rewrite(anatomy, f"prune {side} {share}% of class embeddings by {by} compensate={compensate}")
    rows = parity(made.compact, made.masked, anatomy.inputs)
    assert all(row["holds"] for row in rows), rows


@pytest.mark.parametrize("name", ["Guided", "TwoTables"])
def test_more_inputs_than_a_label_and_a_timestep_have_no_grid(name):
    with pytest.raises(RefusalError, match="not on one label and one timestep alone") as caught:
        strangers.rewrite(strangers.anatomy_of(name), "prune 50% of class embeddings")
    assert caught.value.diagnostics[0].code == "S311"


@pytest.mark.parametrize("share", ["97%", "100%", "16", "20"])
def test_a_cut_that_leaves_none_is_refused(share):
    with pytest.raises(RefusalError, match=f"{share} of 16 coordinates leaves none") as caught:
        strangers.works_of(strangers.anatomy_of("Plain"), f"prune {share} of class embeddings")
    assert caught.value.diagnostics[0].code == "S313"


def test_a_window_needs_a_schedule():
    with pytest.raises(RefusalError, match="needs the model's sampling schedule") as caught:
        strangers.rewrite(strangers.anatomy_of("Plain"), "prune 50% of class embeddings by magnitude when last 3 steps")
    assert caught.value.diagnostics[0].code == "S312"


@pytest.mark.parametrize("name", ["Returned", "TiedTable", "Normed", "ReusedTime"])
def test_what_cannot_be_cut_is_refused_whole(name):
    with pytest.raises(RefusalError, match="cannot cut conditioning") as caught:
        strangers.works_of(strangers.anatomy_of(name), "prune 50% of class embeddings")
    assert caught.value.diagnostics[0].code == "S310" and caught.value.diagnostics[0].span.text.startswith("prune")


@pytest.mark.parametrize(
    ("like", "length", "first", "last"),
    [
        (torch.tensor([3, 4]), 50, 0, 49),
        (torch.tensor([0.5]), 1000, 0.0, 0.999),
        (torch.tensor([400.0]), 1000, 0.0, 999.0),
        (torch.empty(2, device="meta"), 1000, 0.0, 0.999),
    ],
)
def test_timesteps_of_an_unknown_network(like, length, first, last):
    times = default_times(like, length)
    assert len(times) == length and times.dtype == like.dtype
    assert (float(times[0]), float(times[-1])) == pytest.approx((first, last))


def test_windows_of_a_schedule():
    schedule = Schedule(torch.arange(10), torch.tensor([9, 6, 3, 0]))
    assert schedule.window(When.parse("every")) == (0, 9)
    assert schedule.window(When.parse("first 2 steps")) == (6, 9)
    assert schedule.window(When.parse("last 1 steps")) == (0, 0)
    assert schedule.window(When.parse("last 99 steps")) == (0, 9)
