"""The conditional vector is found by structure in what strangers write, and not where there is none."""

import re

import pytest
import strangers
import torch

from surgery.anatomy import inspect
from surgery.targets.tied import tied

LAYERS = {"HoistedModulation": 2, "Interleaved": 1}


@pytest.mark.parametrize("name", strangers.CUT)
def test_c_is_found(name):
    sites = strangers.anatomy_of(name).of_kind("conditioning")
    assert len(sites) == (strangers.DEPTH + 1 if name == "Interleaved" else 1)
    for site in sites:
        assert (site.width, site.classes) == (strangers.WIDTH, strangers.CLASSES)
        assert site.layers == LAYERS.get(name, strangers.DEPTH + 1)
        assert not site.dimension.obstacles


def test_the_copies_that_share_weights_are_tied():
    groups = tied(strangers.anatomy_of("Interleaved").of_kind("conditioning"))
    assert [len(group.sites) for group in groups] == [2, 1]
    assert len(groups[0].unique_consumers) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("TiedTable", r"`table.weight` is also read by `linear` at line \d+ of strangers.py"),
        ("Normed", "`layer_norm` reads it, at `c_norm`"),
        ("NormedInBlock", "`layer_norm` reads it, at `blocks.1.c_norm`"),
        ("Returned", "the model's output reads it$"),
        ("AddedToTokens", r"`add` mixes it with other values \(4 × 16 per sample\), at line \d+ of strangers.py"),
        ("Multiplied", r"`mul` mixes it with other values"),
        ("ReusedTime", "what c is made of is also read by `linear`, at `extra`"),
        ("TwoBiases", "`blocks.0.modulation.weight` is used with several biases"),
        ("ComputedWeight", "the layer that reads it at `last` computes its weight"),
    ],
)
def test_what_cannot_be_cut_is_told_with_the_culprit(name, reason):
    anatomy = strangers.anatomy_of(name)
    (group,) = tied(anatomy.of_kind("conditioning"))
    assert re.search(reason, group.obstacle(anatomy.graph_module)), group.obstacle(anatomy.graph_module)


@pytest.mark.parametrize("name", ["Token", "Tokens"])
def test_tokens_are_no_conditional_vector(name):
    assert strangers.anatomy_of(name).of_kind("conditioning") == ()


def test_c_is_what_constants_make_of_the_sum():
    (three,) = strangers.anatomy_of("Three").of_kind("conditioning")
    (plain,) = strangers.anatomy_of("Plain").of_kind("conditioning")
    assert plain.vector is plain.join
    assert three.vector is not three.join and three.join in three.vector.all_input_nodes


@pytest.mark.parametrize(("name", "rows"), [("TimeTable", 1000), ("Plain", None)])
def test_tables_have_roles(name, rows):
    roles = {site.role: site.rows for site in strangers.anatomy_of(name).of_kind("embedding")}
    assert roles == {"class": 5, "position": 4} | ({"timestep": rows} if rows else {})


def test_positional_inputs_give_the_same_sites():
    model = strangers.make(strangers.Plain)
    named = strangers.inputs_of(model)
    by_position = inspect(model, tuple(named.values()))
    shuffled = inspect(model, {name: named[name] for name in ("y", "x", "t")})
    assert by_position.sites == shuffled.sites == strangers.anatomy_of("Plain").sites
    for anatomy in (by_position, shuffled):
        assert all(torch.equal(anatomy.inputs[name], tensor) for name, tensor in named.items())
