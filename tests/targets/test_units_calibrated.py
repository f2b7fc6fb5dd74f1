"""Heads and channels chosen and made up for by calibration data, on models nobody here wrote."""

import pytest
import strangers
import torch
from torch import nn
from test_units import build

import surgery
from surgery.anatomy import inspect
from surgery.anatomy.graphs import attribute
from surgery.diagnostics import RefusalError
from surgery.models.data import Data
from surgery.targets.calibration import Calibration
from surgery.targets.context import Context
from surgery.targets.passage import Passage

MODELS = {"BertModel": None, "GPT2LMHeadModel": "causal-lm", "LlamaForCausalLM": "causal-lm", "ViTModel": None}


def drawn(inputs: dict, rows: int, seed: int) -> dict:
    """Random inputs like the example ones."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for name, value in inputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            found[name] = torch.randn(rows, *value.shape[1:], generator=draw)
        elif torch.is_tensor(value):
            found[name] = torch.randint(0, 100, (rows, *value.shape[1:]), generator=draw)
    return found


def data(inputs: dict, task: str | None = None, **more) -> Data:
    return Data("given", "random", "", drawn(inputs, 8, 1), task=task, calibration=drawn(inputs, 48, 2) | more)


def operate(model, inputs: dict, spec: str, task: str | None = None, **options):
    given = options.pop("data", None) or data(inputs, task)
    quick = {"timing": False, "controls": False} | options
    return surgery.compile(model, spec, example_inputs=inputs, data=given, **quick)


def moved(model, inputs: dict, result) -> float:
    """How far outputs on held-out rows are from the original's."""
    fed = inputs | data(inputs).inputs
    with torch.no_grad():
        ours, theirs = (next(iter(module(**fed).values())) for module in (result.module, model))
    return float((ours - theirs).norm() / theirs.norm())


CUTS = [
    ("BertModel", "mlp channels"),
    ("GPT2LMHeadModel", "mlp channels"),
    ("ViTModel", "mlp channels"),
    ("BertModel", "attention heads"),
    ("LlamaForCausalLM", "attention heads"),
]


@pytest.mark.parametrize(("name", "what"), CUTS)
def test_refitted_layers_move_the_outputs_less_and_masked_equals_compacted(name, what):
    model, inputs = build(name)
    plain = operate(model, inputs, f"prune 50% of {what} by effect compensate=none", MODELS[name])
    result = operate(model, inputs, f"prune 50% of {what}", MODELS[name])
    assert all(row["holds"] for row in result.report["parity"])
    assert {row["compensate"] for row in result.report["criteria"]} == {"least-squares", "none"}
    assert moved(model, inputs, result) < moved(model, inputs, plain)
    saved = sum(action.parameters for action in result.plan.actions)
    assert result.report["size"]["parameters"]["before"] - result.report["size"]["parameters"]["after"] == saved


@pytest.mark.parametrize("by", ["activation", "taylor", "greedy", "magnitude"])
def test_every_ranking_in_bfloat16(by):
    model, inputs = build("GPT2LMHeadModel")
    result = operate(model.bfloat16(), inputs, f"prune 25% of mlp channels by {by}", "causal-lm")
    assert all(row["holds"] for row in result.report["parity"])
    assert {action["choice"]["by"] for action in result.report["actions"]} == {by}


def test_a_channel_that_others_can_tell_goes_first():
    model, inputs = build("BertModel")
    layer = model.encoder.layer[0]
    with torch.no_grad():
        for tensor in (layer.intermediate.dense.weight, layer.intermediate.dense.bias):
            tensor[1] = tensor[0]
        layer.output.dense.weight[:, :2] *= 5
    for by, gone in (("greedy", True), ("magnitude", False), ("activation", False)):
        result = operate(model, inputs, f"prune 1 of mlp channels in layer 0 by {by}")
        kept = result.report["actions"][0]["choice"]["kept"]
        assert ({0, 1} <= set(kept)) != gone
    assert moved(model, inputs, operate(model, inputs, "prune 1 of mlp channels in layer 0 by greedy")) < 1e-3


def test_taylor_takes_what_the_loss_does_not_feel():
    model, inputs = build("GPT2LMHeadModel")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[:24] = 0
    result = operate(model, inputs, "prune 24 of mlp channels in layer 1 by taylor", "causal-lm")
    assert result.report["actions"][0]["choice"]["kept"] == list(range(24, 256))


class Aside(nn.Module):
    """Two layers, of which only the first one's output is scored."""

    def __init__(self):
        super().__init__()
        self.main, self.aside = (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)) for _ in range(2))

    def forward(self, x):
        return self.main(x), self.aside(x)


def test_taylor_refuses_what_the_loss_does_not_depend_on():
    torch.manual_seed(0)
    given = {"x": torch.randn(32, 8), "targets": torch.randint(0, 4, (32,))}
    with pytest.raises(RefusalError, match="`aside.2` reads: the loss does not depend on it"):
        surgery.compile(
            Aside().eval(),
            "prune 25% of mlp channels by taylor",
            example_inputs={"x": given["x"][:2]},
            data=given,
            calibration=0.5,
            timing=False,
            controls=False,
        )


def test_padding_does_not_count():
    """Rows that differ in padding alone, told by the mask, give the same cut."""
    model, inputs = build("BertModel")
    inputs = inputs | {"attention_mask": torch.ones(2, 8, dtype=torch.long)}
    mask = torch.ones(48, 8, dtype=torch.long)
    mask[::2, 5:] = 0
    noise = {"input_ids": torch.where(mask == 1, drawn(inputs, 48, 2)["input_ids"], torch.randint(0, 100, (48, 8)))}
    held = Data("given", "", "", drawn(inputs, 8, 1) | {"attention_mask": mask[1::2][:8]})
    choices = []
    for ids in (drawn(inputs, 48, 2)["input_ids"], noise["input_ids"]):
        given = Data("given", "", "", held.inputs, calibration={"input_ids": ids, "attention_mask": mask})
        choices.append(operate(model, inputs, "prune 25% of mlp channels", data=given).module.state_dict())
    assert all(torch.equal(choices[0][name], choices[1][name]) for name in choices[0])


def test_a_later_site_is_seen_in_the_network_as_it_then_is():
    model, inputs = build("BertModel")
    anatomy = inspect(model, inputs)
    calibration = Calibration(drawn(inputs, 6, 2), batch=4)
    first, second = (site.down for site in anatomy.of_kind("mlp"))
    passage = Passage(anatomy.graph_module, calibration)
    assert [drift for _, drift in passage.at(first)] == [None, None]
    weight = attribute(anatomy.graph_module, first.args[1].target).detach() * 0
    passage.change(first, weight, None)
    rows, drift = (torch.cat(each) for each in zip(*passage.at(second), strict=True))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.zero_()
    read = []
    model.encoder.layer[1].output.dense.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    with torch.no_grad():
        model(**calibration.inputs)
    assert torch.allclose(rows, read[0].flatten(0, 1), atol=1e-5) and bool(drift.abs().max() > 1e-3)


def test_a_site_is_seen_without_the_layers_that_go():
    model, inputs = build("BertModel")
    anatomy = inspect(model, inputs)
    calibration = Calibration(drawn(inputs, 6, 2), batch=4)
    context = Context(calibration=calibration).begun(anatomy.graph_module)
    (work,) = strangers.works_of(anatomy, "prune layer 0")
    work.choose(anatomy, context)
    _, second = (site.down for site in anatomy.of_kind("mlp"))
    rows, drift = (torch.cat(each) for each in zip(*context.passage.at(second), strict=True))
    model.encoder.layer, read = model.encoder.layer[1:], []
    model.encoder.layer[0].output.dense.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    with torch.no_grad():
        model(**calibration.inputs)
    assert torch.allclose(rows, read[0].flatten(0, 1), atol=1e-5) and bool(drift.abs().max() > 1e-3)


REFUSED = ["by taylor", "by activation", "by greedy", "compensate=least-squares"]


@pytest.mark.parametrize("asked", REFUSED)
def test_what_needs_data_says_so(asked):
    model, inputs = build("BertModel")
    with pytest.raises(RefusalError, match="needs calibration data") as caught:
        surgery.compile(model, f"prune 25% of mlp channels {asked}", example_inputs=inputs, timing=False)
    assert caught.value.diagnostics[0].code == "S323" and "data" in caught.value.diagnostics[0].help


def test_controls_stand_beside_the_cut():
    model, inputs = build("BertModel")
    report = operate(model, inputs, "prune 50% of mlp channels", controls=True).report
    names = [row["name"] for row in report["controls"]]
    assert names[:2] == ["the same without compensation", "the head instead: the criterion reversed"]
    assert names[2:] == ["random 0", "random 1", "random 2"]


@pytest.mark.parametrize("more", ["", "by taylor multiple=8", "by magnitude compensate=none", "by effect"])
def test_a_global_budget_is_spent_where_it_costs_least(more):
    """Channels of layer 1 that say nothing go first, and as many in all as an even share would take."""
    model, inputs = build("BertModel")
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight[:64] = 0
        model.encoder.layer[1].intermediate.dense.bias[:64] = 0
        model.encoder.layer[1].output.dense.weight[:, :64] = 0
    result = operate(model, inputs, f"prune 1/3 of mlp channels budget=global {more}".replace("1/3", "33.4%"))
    first, second = result.plan.actions
    assert first.after["width"] + second.after["width"] == 128
    assert second.after["width"] == 32 and set(result.report["actions"][1]["choice"]["kept"]) == set(range(64, 96))
    assert all(row["holds"] for row in result.report["parity"])
    size, saved = result.report["size"]["parameters"], sum(action.parameters for action in result.plan.actions)
    assert size["before"] - size["after"] == saved


def test_a_global_budget_leaves_every_layer_a_unit():
    model, inputs = build("GPT2LMHeadModel")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.zero_()
    result = operate(model, inputs, "prune 50% of mlp channels budget=global multiple=4", "causal-lm")
    assert [action.after["width"] for action in result.plan.actions] == [4, 252]


class Again(torch.nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)

    def forward(self, x):
        for _ in range(2):
            x = x + self.down(torch.relu(self.up(x)))
        return x


def test_a_layer_that_is_not_refitted_says_why():
    torch.manual_seed(0)
    result = operate(Again().eval(), {"x": torch.randn(2, 3, 8)}, "prune 25% of mlp channels")
    told = " ".join(result.report["actions"][0]["notes"])
    assert "is not refitted: 2 layers read the units" in told
    assert all(row["holds"] for row in result.report["parity"])
