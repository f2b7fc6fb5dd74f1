"""Class embeddings pruned in what strangers write: compacted equals masked, and nothing else moves."""

import copy
from functools import cache

import pytest
import strangers
import torch
from torch import nn

from surgery.anatomy import inspect
from surgery.anatomy.capture import call
from surgery.anatomy.graphs import attribute, shape
from surgery.passes.mask_vector import MaskVector
from surgery.passes.provenance import provenance
from surgery.passes.runner import run_passes
from surgery.session.parity import parity
from surgery.targets.context import Context
from surgery.verify.size import flops, parameters

SPEC = "prune tail {share} of class embeddings by greedy compensate=least-squares"
SHARES = {"38%": 6, "66%": 11, "80%": 13, "66% of class embeddings multiple=8": 8}


@cache
def cut(name, share="66%", dtype=torch.float32):
    spec = SPEC.format(share=share) if "of" not in share else f"prune {share}"
    anatomy = strangers.anatomy_of(name, dtype)
    return anatomy, strangers.rewrite(anatomy, spec)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["Plain", "Axis", "Interleaved"])
def test_every_share_removes_what_it_says(name, share):
    spec = SPEC.format(share=share) if "of" not in share else f"prune {share} compensate=none"
    anatomy = strangers.anatomy_of(name)
    made = strangers.rewrite(anatomy, spec)
    assert {work.remove for work in made.works} == {SHARES[share]}
    assert all(row["holds"] for row in parity(made.compact, made.masked, anatomy.inputs))


HALF = ("Plain", "Axis", "Unbiased", "Interleaved")
CASES = [(name, torch.float32) for name in strangers.CUT] + [(name, torch.bfloat16) for name in HALF]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_compacted_equals_masked(name, dtype):
    anatomy, made = cut(name, dtype=dtype)
    rows = parity(made.compact, made.masked, anatomy.inputs)
    assert [row["batch"] for row in rows] == [2, 5]
    assert all(row["holds"] for row in rows), rows


@pytest.mark.parametrize("name", strangers.CUT)
def test_every_copy_is_cut_and_the_plan_said_so(name):
    anatomy, made = cut(name)
    actions = [work.action(anatomy.graph_module) for work in made.works]
    for change in (change for action in actions for change in action.tensors):
        assert tuple(attribute(made.compact, change.name).shape) == change.after
    saved = sum(action.parameters for action in actions)
    assert parameters(anatomy.graph_module) - parameters(made.compact) == saved
    for site in anatomy.of_kind("conditioning"):
        for node in made.compact.graph.nodes:
            if node.name in {carrier.name for carrier in site.dimension.nodes}:
                assert shape(node)[-1] == strangers.WIDTH - 11


@pytest.mark.parametrize("name", strangers.CUT)
def test_recorded_shapes_are_true(name):
    anatomy, made = cut(name)
    for graph_module in (made.compact, made.masked):
        Shapes(graph_module).run(*anatomy.inputs.values())


class Shapes(torch.fx.Interpreter):
    """Runs a graph and holds every node's dtype and shape against what its meta says; symbolic sizes are the batch."""

    def run_node(self, node):
        result, told = super().run_node(node), node.meta.get("val")
        if isinstance(told, torch.Tensor):
            want = [size if isinstance(size, int) else None for size in shape(node)]
            assert told.dtype == result.dtype, node.name
            assert all(size in (None, real) for size, real in zip(want, result.shape, strict=True)), node.name
        return result


@pytest.mark.parametrize("name", ["Plain", "SharedModulation", "Interleaved", "Unbiased"])
def test_marks_are_on_the_nodes_that_changed_and_on_no_others(name):
    anatomy, made = cut(name)
    old = {node.name: node for node in anatomy.graph_module.graph.nodes}
    for node in made.compact.graph.nodes:
        assert bool(provenance(node)) == differs(anatomy.graph_module, old.get(node.name), made.compact, node), node
        if provenance(node):
            (mark,) = provenance(node)
            assert mark.clause == SPEC.format(share="66%") and mark.place.endswith(":1:1") and mark.by == "prune"
    assert not any(map(provenance, anatomy.graph_module.graph.nodes))


def differs(before, old, after, node):
    """A new node, other arguments, another tensor, or another shape."""
    if old is None or str(old.args) != str(node.args):
        return True
    if node.op == "get_attr" and attribute(before, node.target) is not attribute(after, node.target):
        return True
    return str(shape(old)) != str(shape(node))


@pytest.mark.parametrize("name", ["Plain", "Interleaved"])
def test_the_original_stays_as_it_was(name):
    model = strangers.make(getattr(strangers, name))
    inputs = strangers.inputs_of(model)
    weights, output = copy.deepcopy(model.state_dict()), model(**inputs)
    anatomy = inspect(model, inputs)
    code = anatomy.graph_module.code
    strangers.rewrite(anatomy, SPEC.format(share="66%"))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in weights.items())
    assert torch.equal(model(**inputs), output) and anatomy.graph_module.code == code


@pytest.mark.parametrize("options", ["", " scope=per-vector", " when first 3 steps"])
def test_nothing_pruned_is_the_identity(options):
    anatomy = strangers.anatomy_of("Plain")
    made = strangers.rewrite(anatomy, f"prune tail 0% of class embeddings{options}")
    assert torch.equal(call(made.compact, anatomy.inputs), call(anatomy.graph_module, anatomy.inputs))
    assert parameters(made.compact) == parameters(anatomy.graph_module)


def test_biases_come_with_compensation_alone():
    anatomy = strangers.anatomy_of("Unbiased")
    for compensate, wanted in (("none", 0), ("least-squares", strangers.DEPTH + 1)):
        made = strangers.rewrite(anatomy, f"prune 50% of class embeddings by effect compensate={compensate}")
        names = {name for name, _ in made.compact.named_parameters()}
        assert (
            sum(name in names for name in ("blocks.0.modulation.bias", "blocks.1.modulation.bias", "last.bias"))
            == wanted
        )


@pytest.mark.parametrize("name", ["Plain", "Axis", "Three"])
@pytest.mark.parametrize("by", ["magnitude", "activation", "effect", "greedy"])
def test_without_compensation_removed_means_zero(name, by):
    anatomy = strangers.anatomy_of(name)
    made = strangers.rewrite(anatomy, f"prune 50% of class embeddings by {by} compensate=none")
    assert all(row["holds"] for row in parity(made.compact, made.masked, anatomy.inputs))


@pytest.mark.parametrize("name", ["Plain", "Sigmoidal"])
def test_removing_plainly_is_setting_c_to_zero(name):
    anatomy = strangers.anatomy_of(name)
    made = strangers.rewrite(anatomy, "prune 50% of class embeddings by magnitude compensate=none")
    (work,) = made.works
    keep = work.choose(anatomy, Context()).keep
    vectors = tuple(site.vector.name for site in work.group.sites)
    mask = MaskVector("", "", vectors, work.group.width, work.remove, keep=keep)
    zeroed = run_passes(anatomy.graph_module, [mask])
    assert all(row["holds"] for row in parity(made.compact, zeroed, anatomy.inputs))


def test_flops_saved_are_those_counted():
    for name in ("Plain", "HoistedModulation", "SharedModulation", "Projected", "Interleaved"):
        anatomy, made = cut(name)
        inputs = dict(anatomy.inputs)
        counted = flops(anatomy.graph_module, inputs, samples=2) - flops(made.compact, inputs, samples=2)
        assert sum(work.action(anatomy.graph_module).flops for work in made.works) == counted


def test_gradient_flows_and_training_descends():
    model = strangers.make(strangers.Plain)
    anatomy = inspect(model, strangers.inputs_of(model))
    made = strangers.rewrite(anatomy, SPEC.format(share="50%"))
    optimizer = torch.optim.SGD(made.compact.parameters(), lr=1e-3)
    target = call(anatomy.graph_module, anatomy.inputs).detach()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(call(made.compact, anatomy.inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in made.compact.parameters())
    assert losses[-1] < losses[0]


def test_the_rewritten_graph_compiles():
    anatomy, made = cut("Plain")
    compiled = torch.compile(made.compact, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(call(compiled, anatomy.inputs), call(made.compact, anatomy.inputs), atol=1e-6)
