"""`surgery.compile`, `inspect` and `plan` on a module of one's own."""

import json

import pytest
import torch
from tiny_model import TinyDit, inputs

import surgery
from surgery.diagnostics import SurgeryError
from surgery.report.document import validate

SPEC = "prune tail 50% of class embeddings"
QUICK = {"timing": False, "controls": False}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_called_like_the_original(halved):
    fresh = inputs(4, seed=9)
    x, t, y = fresh.values()
    expected = halved.module(**fresh)
    assert expected.shape == (4, 6)
    for found in (halved.module(x, t, y), halved.module(x, t, y=y), halved.module(y=y, x=x, t=t)):
        assert torch.equal(found, expected)


def test_what_a_result_holds(halved):
    assert isinstance(halved.module, torch.nn.Module)
    assert isinstance(halved.graph_module, torch.fx.GraphModule)
    assert halved.module.modulation.weight.shape == (32, 4)
    assert halved.plan.actions[0].after == {"width": 4}
    assert [row["metric"] for row in halved.report["quality"]] == ["output error", "output cosine"]
    assert all(row["holds"] for row in halved.report["parity"])
    validate(json.loads(json.dumps(halved.report, allow_nan=False)))


@pytest.mark.parametrize("order", ["xty", "ytx"])
def test_example_inputs_by_name_in_any_order(tiny, order):
    model, example = tiny
    shuffled = {name: example[name] for name in order}
    result = surgery.compile(model, SPEC, example_inputs=shuffled, **QUICK)
    x, t, y = inputs(4).values()
    assert torch.equal(result.module(x, t, y), result.module(x=x, t=t, y=y))


def test_example_inputs_by_position(tiny, halved):
    model, example = tiny
    result = surgery.compile(model, SPEC, example_inputs=tuple(example.values()), **QUICK)
    fresh = inputs(4)
    assert torch.equal(result.module(*fresh.values()), halved.module(**fresh))
    assert torch.equal(result.module(**fresh), halved.module(**fresh))


def test_the_model_is_left_as_it_was(tiny):
    model, example = tiny
    model.train()
    model.norm.eval()
    before, modes = weights(model), [part.training for part in model.modules()]
    result = surgery.compile(model, SPEC, example_inputs=example, **QUICK)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fresh = inputs(4)
    assert torch.equal(result.module(**fresh), result.module(**fresh)), "dropout of the original must not be captured"


def test_a_failed_run_leaves_the_model_as_it_was(tiny):
    model, example = tiny
    model.train()
    with pytest.raises(SurgeryError):
        surgery.compile(model, "prune tail 50% of heads", example_inputs=example, **QUICK)
    assert model.training


def test_no_data_is_noise(halved):
    assert halved.report["data"]["reference"] == "noise"
    assert halved.report["quality"][0]["data"] == "noise: outputs on 64 inputs"


@pytest.mark.parametrize("data", ["noise", "mapping"])
def test_data_of_the_call(tiny, data):
    model, example = tiny
    given = inputs(20, seed=3) if data == "mapping" else data
    result = surgery.compile(model, f"data noise samples=5\n{SPEC}", example_inputs=example, data=given, **QUICK)
    count = 20 if data == "mapping" else 5
    assert f"outputs on {count} inputs" in result.report["quality"][0]["data"]
    if data == "mapping":
        chosen, whole = (module(**given).detach().double() for module in (result.module, model))
        error = float((chosen - whole).norm() / whole.norm())
        assert result.report["quality"][0]["after"] == pytest.approx(error, rel=1e-6)
        assert result.report["data"]["reference"] is None


MISFITS = {
    "missing": (lambda given: given.pop("t"), "missing: t"),
    "unexpected": (lambda given: given.update(z=torch.zeros(4)), "unexpected: z"),
    "no tensor": (lambda given: given.update(t=[0.1] * 4), "t is no tensor"),
    "lengths": (lambda given: given.update(t=torch.zeros(3)), "t has 3 rows"),
    "empty": (lambda given: given.update({k: v[:0] for k, v in given.items()}), "x has 0 rows"),
    "axes": (lambda given: given.update(x=torch.zeros(4)), "x is [4], the example input [3, 6]"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_data_that_does_not_fit(tiny, case):
    spoil, told = MISFITS[case]
    given = inputs(4)
    spoil(given)
    model, example = tiny
    with pytest.raises(SurgeryError) as caught:
        surgery.compile(model, SPEC, example_inputs=example, data=given, **QUICK)
    assert caught.value.diagnostics[0].code == "S212"
    assert told in caught.value.diagnostics[0].notes


def test_data_with_nan(tiny):
    model, example = tiny
    given = inputs(4)
    given["x"][0, 0] = float("nan")
    with pytest.raises(SurgeryError, match="S204.*the data given"):
        surgery.compile(model, SPEC, example_inputs=example, data=given, **QUICK)


def test_a_bundle_of_given_data_is_operated_on_again(tiny, tmp_path):
    model, example = tiny
    surgery.compile(model, SPEC, example_inputs=example, data=inputs(8), **QUICK).save(tmp_path / "half")
    quarter = surgery.compile(str(tmp_path / "half"), SPEC, **QUICK)
    assert quarter.report["data"]["reference"] == "noise"
    assert quarter.module.modulation.weight.shape == (32, 2)


def test_inspect_and_plan(tiny):
    model, example = tiny
    anatomy = surgery.inspect(model, example)
    assert [site.width for site in anatomy.of_kind("conditioning")] == [8]
    assert surgery.plan(model, SPEC, example_inputs=tuple(example.values())).actions[0].before == {"width": 8}


def test_plan_needs_no_weights():
    with torch.device("meta"):
        model, example = TinyDit(), {"x": torch.empty(2, 6), "t": torch.empty(2), "y": torch.empty(2).long()}
    action = surgery.plan(model, SPEC, example_inputs=example).actions[0]
    assert action.parameters == 4 * (8 + 1 + 5 + 32), (
        "rows of the time branch and its bias, columns of the table and the layer"
    )


@pytest.mark.parametrize("example", [None, (), {}])
def test_without_example_inputs(tiny, example):
    with pytest.raises(SurgeryError, match="S320.*TinyDit comes without example inputs"):
        surgery.compile(tiny[0], SPEC, example_inputs=example)


def test_without_a_model():
    with pytest.raises(SurgeryError, match="(?s)S321.*model zoo:digits-dit"):
        surgery.apply(SPEC)


def test_analyze_returns_findings(tiny):
    model, example = tiny
    (found,) = surgery.analyze(model, example_inputs=example)
    assert found["kind"] == "embeddings" and (found["classes"], found["width"]) == (5, 8)


def test_nothing_to_analyze():
    with pytest.raises(SurgeryError, match="S104.*Linear has no class embeddings"):
        surgery.analyze(torch.nn.Linear(3, 2), example_inputs=(torch.zeros(2, 3),))
