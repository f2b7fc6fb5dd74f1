"""What is chosen and folded in, against the definition written out; and the model that ships."""

import pytest
import strangers
import torch

from surgery.anatomy import inspect
from surgery.anatomy.graphs import attribute
from surgery.models import open_model
from surgery.session.parity import parity
from surgery.targets.conditional_grid import conditional_grid
from surgery.targets.schedule import Schedule
from surgery.targets.support import choose_support
from surgery.targets.tied import tied

SPEC = "prune tail {share} of class embeddings by {by} compensate=least-squares"


def features_of(anatomy):
    """The modulation layers' inputs at every timestep and class [T · V, D], from the model itself."""
    (group,) = tied(anatomy.of_kind("conditioning"))
    grid = conditional_grid(anatomy, group, None)
    c = (grid.time[:, None] + grid.table[None]).flatten(0, 1)
    return grid, torch.nn.functional.silu(c)


@pytest.mark.parametrize("name", ["Plain", "Three", "Scaled", "ConstantFirst", "Axis", "TimeTable"])
def test_the_grid_is_what_the_model_computes(name):
    model, anatomy = strangers.make(getattr(strangers, name)), strangers.anatomy_of(name)
    grid, _ = features_of(anatomy)
    with torch.no_grad():
        for time, label in ((0, 1), (617, 4), (999, 0)):
            t = grid.times[time : time + 1]
            c = model.condition(t, torch.tensor([label])).flatten()
            assert torch.allclose((grid.time[time] + grid.table[label]).float(), c, atol=1e-5)


@pytest.mark.parametrize("by", ["greedy", "magnitude"])
def test_least_squares_is_the_explicit_solution(by):
    anatomy = strangers.anatomy_of("Plain")
    grid, features = features_of(anatomy)
    made = strangers.rewrite(anatomy, SPEC.format(share="11", by=by))
    (choice,) = made.choices
    kept = torch.cat([features[:, choice.keep], features.new_ones(len(features), 1)], 1)
    missed = total = 0.0
    for name, weight, bias in grid.consumers():
        wanted = features @ weight.double().T + bias.double()
        solution = torch.linalg.lstsq(kept, wanted, driver="gelsd").solution
        new_weight, new_bias = choice.linears[name]
        got = features[:, choice.keep] @ new_weight.T.double() + new_bias.double()
        residual = (kept @ solution - wanted).square().sum()
        assert float((got - wanted).square().sum()) == pytest.approx(float(residual), rel=1e-3)
        missed += float(residual)
        total += float((wanted - wanted.mean(0)).square().sum())
    assert choice.chosen.error == pytest.approx(missed / total, rel=1e-3)


def test_keeping_all_keeps_the_weights():
    anatomy = strangers.anatomy_of("Plain")
    (work,) = strangers.works_of(anatomy, SPEC.format(share="1", by="greedy"))
    choice = choose_support(anatomy, work.group, None, work.options, strangers.WIDTH)
    assert choice.keep.tolist() == list(range(strangers.WIDTH)) and choice.chosen.error == pytest.approx(0, abs=1e-12)
    for name, (weight, bias) in choice.linears.items():
        assert torch.allclose(weight.float(), attribute(anatomy.graph_module, name), atol=1e-6)
        assert torch.allclose(bias.float(), attribute(anatomy.graph_module, name[: -len("weight")] + "bias"), atol=1e-6)


def test_auto_takes_the_criterion_with_the_least_error():
    anatomy = strangers.anatomy_of("Plain")
    (choice,) = strangers.rewrite(anatomy, SPEC.format(share="66%", by="auto")).choices
    assert {candidate.by for candidate in choice.candidates} == {"greedy", "effect", "activation", "magnitude"}
    assert choice.chosen.error == min(candidate.error for candidate in choice.candidates)


def test_a_mask_is_chosen_as_a_mask():
    anatomy = strangers.anatomy_of("Plain")
    schedule = Schedule(torch.arange(1000.0), torch.tensor([900.0, 0.0]))
    (choice,) = strangers.rewrite(anatomy, "prune 50% of class embeddings when first 1 steps", schedule).choices
    assert choice.chosen.compensate == "none" and not choice.linears and not choice.tensors


def test_refitting_moves_the_kept_coordinates_and_compacted_equals_masked():
    anatomy = strangers.anatomy_of("Plain")
    made = strangers.rewrite(anatomy, "prune 66% of class embeddings by greedy compensate=refit")
    (choice,) = made.choices
    assert choice.chosen.compensate == "refit" and choice.chosen.error < choice.candidates[0].error
    assert all(row["holds"] for row in parity(made.compact, made.masked, anatomy.inputs))


@pytest.fixture(scope="module")
def digits():
    model = open_model("zoo:digits-dit")
    return model, inspect(model.module, model.example_inputs)


def test_the_shipped_model_has_one_c(digits):
    model, anatomy = digits
    (site,) = anatomy.of_kind("conditioning")
    depth = len(model.module.blocks)
    assert site.layers == depth + 1 and len(anatomy.of_kind("block")) == depth
    assert len(anatomy.of_kind("attention")) == len(anatomy.of_kind("mlp")) == depth
    assert {found.role for found in anatomy.of_kind("embedding")} == {"class", "position"}


def test_the_shipped_model_is_cut_in_every_layer(digits):
    model, anatomy = digits
    made = strangers.rewrite(anatomy, SPEC.format(share="66%", by="greedy"))
    (work,) = made.works
    for block in range(len(model.module.blocks)):
        weight = made.compact.get_parameter(f"blocks.{block}.adaLN_modulation.1.weight")
        assert weight.shape == (6 * work.group.width, work.left)
    assert all(row["holds"] for row in parity(made.compact, made.masked, model.example_inputs))
