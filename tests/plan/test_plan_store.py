"""Plans: made without weights, kept as JSON, refused when stale or damaged."""

import json
import os
import time

import pytest
import strangers
import torch

import surgery
from surgery.anatomy import capture
from surgery.diagnostics import StalePlanError, SurgeryError
from surgery.plan.action import Action, TensorChange
from surgery.plan.fingerprint import fingerprint
from surgery.plan.size import size_of
from surgery.plan.store import changes_since, read_plan, refuse_stale, write_plan

SPEC = "prune tail 66% of class embeddings"


@pytest.fixture(scope="module")
def plan():
    return plan_of(strangers.Plain)


def plan_of(cls, spec=SPEC, width=strangers.WIDTH):
    with torch.device("meta"):
        model = cls(width).eval()
    return surgery.plan(model, spec, example_inputs=strangers.inputs_of(strangers.make(cls)))


def test_a_plan_needs_no_weights(plan):
    (action,) = plan.actions
    assert (action.before, action.after) == ({"width": 16}, {"width": 5})
    document = plan.document()
    assert document["size"]["parameters"]["before"] - document["size"]["parameters"]["after"] == action.parameters
    model = strangers.make(strangers.Plain)
    assert surgery.plan(model, SPEC, example_inputs=strangers.inputs_of(model)).document() == document


def test_shares_and_multiples_are_explained(plan):
    assert plan.actions[0].notes == ("66% of 16 is 10.56: 11 removed",)
    rounded = plan_of(strangers.Plain, f"{SPEC} multiple=8").actions[0]
    assert rounded.after == {"width": 8} and rounded.notes[-1] == "5 kept, rounded up to 8, a multiple of 8"
    assert plan_of(strangers.Plain, "prune tail 50% of class embeddings").actions[0].notes == ()


def test_masks_save_nothing():
    (action,) = plan_of(strangers.Plain, f"{SPEC} scope=per-vector").actions
    assert action.after == {"width": 16, "masked": 11}
    assert (action.parameters, action.bytes, action.flops, action.tensors) == (0, 0, 0, ())


def test_a_plan_comes_back_as_it_was_written(plan, tmp_path):
    write_plan(plan, tmp_path / "plan.json")
    saved = read_plan(tmp_path / "plan.json")
    assert saved == json.loads(json.dumps(plan.document())) and saved["format"] == "surgery.plan/1"
    refuse_stale(saved, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            lambda: plan_of(strangers.Plain, width=24),
            "`blocks.0.modulation.weight` was float32[96, 16], is float32[144, 24]",
        ),
        (lambda: plan_of(strangers.Plain, "prune tail 60% of class embeddings"), "the spec's text changed"),
        (lambda: plan_of(strangers.Gelu), "the model's operations changed"),
        (lambda: plan_of(strangers.Three), "`constant` is new"),
    ],
    ids=["shape", "spec", "operations", "tensor"],
)
def test_a_stale_plan_is_refused_and_says_what_changed(plan, other, said):
    with pytest.raises(StalePlanError) as caught:
        refuse_stale(plan.document(), other())
    assert caught.value.exit_code == 4
    (fault,) = caught.value.diagnostics
    assert fault.code == "S401" and said in fault.notes, fault.notes


def test_many_changes_are_told_shortly(plan):
    with pytest.raises(StalePlanError) as caught:
        refuse_stale(plan.document(), plan_of(strangers.Plain, width=24))
    notes = caught.value.diagnostics[0].notes
    assert len(notes) == 9 and notes[-1].startswith("… and ")


def test_changed_actions_are_told(plan):
    now = plan.document()
    saved = json.loads(json.dumps(now))
    saved["actions"][0]["choice"]["by"] = "greedy"
    assert changes_since(saved, now)[0].startswith("conditioning: choice was {")
    saved["actions"] = []
    assert changes_since(saved, now) == ["0 actions were planned, now 1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": "surgery.report/1"}',
        b'{"format": "surgery.plan/1"}',
        b'{"format": "surgery.plan/1", "model": [], "spec": "", "actions": {}}',
    ],
    ids=["empty", "truncated", "list", "binary", "report", "hollow", "misshapen"],
)
def test_a_file_that_is_no_plan_is_refused(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(SurgeryError) as caught:
        read_plan(path)
    (fault,) = caught.value.diagnostics
    assert fault.code == "S403" and str(path) in fault.message and "surgery plan" in fault.help


def test_missing_files_and_folders(plan, tmp_path):
    with pytest.raises(SurgeryError, match="No such file") as caught:
        read_plan(tmp_path / "plan.json")
    assert caught.value.diagnostics[0].code == "S403"
    with pytest.raises(SurgeryError, match="cannot write the plan") as caught:
        write_plan(plan, tmp_path / "missing" / "plan.json")
    assert caught.value.diagnostics[0].code == "S402"


def test_a_write_that_fails_leaves_the_old_plan_alone(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SurgeryError, match="No space left"):
        write_plan(plan, path)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_fingerprints_are_of_structure_alone():
    again = strangers.make(strangers.Plain, seed=7)
    other = capture(again, strangers.inputs_of(again, batch=3))
    plain = strangers.anatomy_of("Plain").graph_module
    assert fingerprint(other) == fingerprint(plain)
    different = {fingerprint(strangers.anatomy_of(name).graph_module) for name in ("Plain", "Gelu", "Three", "Axis")}
    assert len(different) == 4


def test_sizes_count_a_shared_tensor_once():
    size = size_of(strangers.anatomy_of("SharedModulation").graph_module)
    parameters = sum(tensor.numel() for tensor in strangers.make(strangers.SharedModulation).parameters())
    assert (size.parameters, size.bytes) == (parameters, 4 * parameters)


def test_actions_add_up():
    changes = (TensorChange("a", (4, 6), (4, 2), 2), TensorChange("b", (0,), (3,), 4))
    action = Action("prune", "a:1:1", "prune", "conditioning", ("x", "y"), {}, {}, changes)
    assert (action.parameters, action.bytes, action.site) == (16 - 3, 32 - 12, "x + 1 more")


def test_the_largest_dit_is_planned_in_seconds():
    from surgery.zoo.dit import DiT

    with torch.device("meta"):
        model = DiT(size=32, channels=4, patch=2, width=1152, depth=28, heads=16, mlp_ratio=4.0, classes=1000).eval()
    inputs = {"x": torch.zeros(2, 4, 32, 32), "t": torch.tensor([3.0, 999.0]), "y": torch.tensor([1, 2])}
    start = time.process_time()
    plan = surgery.plan(model, SPEC, example_inputs=inputs)
    assert time.process_time() - start < 30
    (action,) = plan.actions
    assert (action.before, action.after) == ({"width": 1152}, {"width": 392})
    assert len([change for change in action.tensors if "adaLN" in change.name]) == 29


def test_what_two_actions_cut_from_one_tensor_counts_once():
    from surgery.plan.action import Action, TensorChange
    from surgery.plan.plan import saved_by

    def action(*changes):
        return Action("prune", "", "prune", "mlp", ("a",), {}, {}, tuple(TensorChange(*each) for each in changes))

    narrow = action(("up", (8, 4), (6, 4)), ("down", (4, 8), (4, 6)))
    assert saved_by([narrow]) == (16, 64)
    assert saved_by([narrow, action(("up", (8, 4), (0,)))]) == (32 + 8, 4 * 40)
    assert saved_by([narrow, action(("up", (8, 4), (8, 2)))]) == (32 - 12 + 8, 4 * 28)
    assert saved_by([action(("bias", (0,), (5,)))]) == (-5, -20)
