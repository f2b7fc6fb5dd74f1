"""Training learns, resumes to the bit, and never leaves a half-trained or half-written file."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from surgery import zoo
from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import read_tensors
from surgery.zoo import stdlib, store, tasks
from surgery.zoo.denoiser import Denoiser
from surgery.zoo.language import Writer
from surgery.zoo.recipe import Training
from surgery.zoo.training import Trainee, state_file, train

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0}


def recipe(steps: int, **changes) -> Denoiser:
    plan = Training(steps=steps, batch=32, warmup=5, **changes)
    return Denoiser("tiny", "a small model for tests", time_scale=10.0, training=plan, network=SMALL)


def losses_of(steps, out, **options):
    losses = []
    train(recipe(steps), out, progress=lambda _, loss: losses.append(loss), **options)
    return losses


def test_twenty_steps_decrease_the_loss(tmp_path):
    losses = losses_of(20, tmp_path / "tiny.safetensors")
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(recipe(12), whole)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(12), parts, progress=press_ctrl_c_at(7))
    assert not parts.exists()
    train(recipe(12), parts, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
    assert state_file(whole).read_bytes() == state_file(parts).read_bytes()


@pytest.mark.parametrize("half", [False, True])
def test_a_resumed_decoder_equals_an_uninterrupted_one(half, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "TRAINING", 200)
    plan, network = Training(steps=6, batch=8, warmup=2), {"width": 16, "depth": 1, "heads": 2}
    tiny = Writer("tiny", "a small decoder for tests", tasks, plan, "tasks", network, half=half)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(tiny, whole)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, parts, progress=press_ctrl_c_at(3))
    train(tiny, parts, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
    kept = read_tensors(state_file(whole))
    assert {value.dtype for name, value in kept.items() if name != "step"} == {torch.float32}


def press_ctrl_c_at(step):
    def progress(done, _):
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_ctrl_c_restores_the_handler_that_was_there(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(5), tmp_path / "tiny.safetensors", progress=press_ctrl_c_at(2))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tmp_path, monkeypatch, value):
    out, honest = tmp_path / "tiny.safetensors", Denoiser.loss
    done = []

    def poisoned(self, network, data, chance):
        return honest(self, network, data, chance) * (value if len(done) == 3 else 1.0)

    monkeypatch.setattr(Denoiser, "loss", poisoned)
    with pytest.raises(SurgeryError) as caught:
        train(recipe(10), out, progress=lambda step, _: done.append(step))
    assert caught.value.diagnostics[0].code == "S801" and "step 3" in str(caught.value)
    assert not out.exists()
    kept = read_tensors(state_file(out))
    assert int(kept["step"]) == 3
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_resuming_without_a_state_says_what_to_do(tmp_path):
    with pytest.raises(SurgeryError) as caught:
        train(recipe(3), tmp_path / "absent.safetensors", resume=True)
    assert caught.value.diagnostics[0].code == "S802"


def test_the_state_of_another_model_is_refused():
    tensors = Trainee.fresh(recipe(3)).state()
    other = replace(recipe(3), network={**SMALL, "width": 16})
    with pytest.raises(SurgeryError) as caught:
        Trainee.resumed(other, tensors)
    assert caught.value.diagnostics[0].code == "S203"
    with pytest.raises(SurgeryError) as caught:
        Trainee.resumed(other, {"weight": torch.zeros(1)})
    assert caught.value.diagnostics[0].code == "S802"


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    store.save_weights(path, {"a": torch.ones(3)}, "tiny", 1)
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.save_weights(path, {"a": torch.zeros(3)}, "tiny", 2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_rate_rises_stays_and_falls():
    plan = Training(steps=1000, warmup=100, cooldown=0.4, rate=1.0)
    assert plan.rate_at(0) == 0.01
    assert plan.rate_at(99) == plan.rate_at(600) == 1.0
    assert plan.rate_at(800) == pytest.approx(0.5)
    assert 0 < plan.rate_at(999) < 0.01


@pytest.mark.parametrize("name", zoo.names())
def test_every_recipe_learns_from_one_batch(name, monkeypatch):
    monkeypatch.setattr(tasks, "TRAINING", 200)
    monkeypatch.setattr(stdlib, "texts", lambda held_out: ["def double(x):\n    return 2 * x\n" * 200])
    model = zoo.entry(name)
    assert model.name == name
    small = replace(model, training=replace(model.training, batch=4))
    loss = Trainee.fresh(small).advance(model.training_data())
    assert 0 < loss < 10
