"""An interrupted training resumes to the bit, and a checkpoint is of one training alone."""

import json
import os
import signal
from dataclasses import replace

import pytest
import taught
import torch

from surgery.diagnostics import SurgeryError
from surgery.plan.fingerprint import fingerprint
from surgery.training.checkpoint import read
from surgery.training.engine import EVALUATION, train
from surgery.training.objective import Constrained, Recovery
from surgery.training.settings import Settings

PLAN = Settings(steps=14, rate=3e-3, batch=8, evaluate_every=3, checkpoint_every=5)


@pytest.fixture(scope="module")
def graph():
    return taught.graph()


@pytest.fixture(scope="module")
def data(graph):
    return taught.calibration(graph)


def interrupted(graph, data, settings, objective, at, **given):
    """Train until Ctrl-C at a step; what the interrupt says."""

    def press(stage, done, total):
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(graph, data, settings, objective, progress=press, **given)
    return str(caught.value)


def noisy(module, step, micro):
    """Noise by step and pass alone, as whoever resumes exactly has to write it."""
    chance = torch.Generator().manual_seed(1000 * step + micro + 1)
    module.scale.fill_(0.5 if micro == EVALUATION else 0.5 + 0.1 * torch.rand((), generator=chance).item())


@pytest.mark.parametrize("changes", [{}, {"lora": 3}, {"accumulate": 2, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_training_equals_an_uninterrupted_one(changes, dtype, data, tmp_path):
    graph = taught.graph(dtype=dtype)
    plan = replace(PLAN, **changes)
    whole = train(graph, data, plan, Recovery(), before_step=noisy)
    kept = replace(plan, checkpoint=tmp_path / "run")
    told = interrupted(graph, data, kept, Recovery(), 7, before_step=noisy)
    assert told == "training was interrupted at step 8 of 14; run the same again to go on from there"
    assert [path.name for path in kept.checkpoint.iterdir()] == ["step-000008"]
    resumed = train(graph, data, kept, Recovery(), before_step=noisy)
    assert taught.same(whole.weights, resumed.weights) and whole.best == resumed.best and whole.start == resumed.start
    assert numbers(whole) == numbers(resumed)
    again = train(graph, data, kept, Recovery(), before_step=noisy)
    assert taught.same(whole.weights, again.weights) and numbers(again) == numbers(whole), "a finished one is done"


def numbers(trained):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in trained.history]


def test_the_same_graph_is_known_again_in_another_process():
    """One with functions in it too, whose text holds an address: of two functions alike, here."""

    def made():
        def twice(x):
            return 2 * x

        graph = taught.graph()
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        with graph.graph.inserting_before(output):
            graph.graph.call_function(twice, (output.all_input_nodes[0],))
        return graph

    assert fingerprint(made()) == fingerprint(made()) != fingerprint(taught.graph())


def test_the_multiplier_resumes_too(data, tmp_path):
    graph = taught.graph()
    forward = lambda module, inputs: (module(**inputs), module.get_parameter("up.bias").square().mean())  # noqa: E731
    whole = train(graph, data, PLAN, Constrained(target=3.0), forward=forward)
    kept = replace(PLAN, checkpoint=tmp_path / "run")
    interrupted(graph, data, kept, Constrained(target=3.0), 6, forward=forward)
    resumed = train(graph, data, kept, Constrained(target=3.0), forward=forward)
    assert numbers(whole) == numbers(resumed) and taught.same(whole.weights, resumed.weights)
    assert whole.history[-1]["multiplier"] > 1


def test_without_a_folder_an_interrupt_says_that_nothing_is_kept(graph, data):
    assert "nothing is kept" in interrupted(graph, data, PLAN, Recovery(), 2)


def test_a_checkpoint_of_another_training_is_refused_and_names_what_differs(graph, data, tmp_path):
    kept = replace(PLAN, checkpoint=tmp_path / "run")
    interrupted(graph, data, kept, Recovery(), 4)
    other = taught.graph()
    with torch.no_grad():
        other.get_parameter("up.bias").add_(1)
    cases = [
        (graph, data, replace(kept, rate=1e-3), Recovery(), ["rate: 0.003 there, 0.001 here"]),
        (graph, data, replace(kept, lora=2, seed=4), Recovery(), ["lora: 0 there, 2 here", "seed: 0 there, 4 here"]),
        (graph, taught.calibration(graph, 60), kept, Recovery(), ["calibration data: "]),
        (other, data, kept, Recovery(), ["weights: "]),
        (graph, data, kept, Constrained(1.0), ["objective: recovery there, constrained here", "target: nothing there"]),
    ]
    for graph_module, rows, settings, objective, notes in cases:
        with pytest.raises(SurgeryError) as caught:
            train(graph_module, rows, settings, objective)
        (found,) = caught.value.diagnostics
        assert found.code == "S812" and len(found.notes) == len(notes)
        assert all(told.startswith(note) for told, note in zip(found.notes, notes, strict=True))


def test_a_stop_at_a_number_that_is_not_finite_leaves_a_finite_checkpoint(graph, data, tmp_path):
    def spoil(module, step, micro):
        module.scale.fill_(float("nan") if step == 7 and micro != EVALUATION else 0.5)

    kept = replace(PLAN, checkpoint=tmp_path / "run")
    first = train(graph, data, kept, Recovery(), before_step=spoil)
    (folder,) = kept.checkpoint.iterdir()
    found = read(kept.checkpoint, json.loads((folder / "state.json").read_text())["identity"])
    assert found.told["step"] == 7 and all(torch.isfinite(value).all() for value in found.tensors.values())
    again = train(graph, data, kept, Recovery(), before_step=spoil)
    assert again.state == first.state and taught.same(first.weights, again.weights)


def test_a_half_written_step_is_not_seen_and_a_damaged_one_is_told(graph, data, tmp_path):
    kept = replace(PLAN, checkpoint=tmp_path / "run")
    (kept.checkpoint / ".step-000009.1").mkdir(parents=True)
    interrupted(graph, data, kept, Recovery(), 4)
    (kept.checkpoint / "step-000005" / "state.json").write_text("{}")
    with pytest.raises(SurgeryError, match="not a training's checkpoint"):
        train(graph, data, kept, Recovery())


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_that_is_not_finite_from_the_beginning_on_leaves_the_model_as_it_was(first, graph, data, tmp_path):
    """In the first evaluation, and in the first step: there is nothing to resume from yet."""

    def spoil(module, step, micro):
        module.scale.fill_(float("nan") if first == 0 or micro != EVALUATION else 0.5)

    kept = replace(PLAN, checkpoint=tmp_path / "run")
    trained = train(graph, data, kept, Recovery(), before_step=spoil)
    assert trained.state.startswith("stopped: a ") and trained.state.endswith("at step 0") and not trained.history
    assert trained.best_step == 0 and not kept.checkpoint.exists()
    assert all(torch.equal(value, graph.get_parameter(name)) for name, value in trained.weights.items())
