"""`stdlib`: Python's own source as held-out text and text to calibrate on; the decoder that ships learned it."""

from pathlib import Path

import pytest
import saved
import torch

from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.session.operate import apply
from surgery.verify.quality import quality
from surgery.zoo import stdlib

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def few():
    """Some modules of each side: the test then reads a part of the library."""
    return {side: stdlib.texts(held_out=side)[:24] for side in (True, False)}


@pytest.fixture
def short(few, monkeypatch):
    monkeypatch.setattr(stdlib, "texts", lambda held_out: list(few[held_out]))


@pytest.fixture(scope="module")
def model():
    return open_model("zoo:code-gpt")


def test_every_module_is_on_one_side_and_no_test_suite_on_any():
    training, held_out = (stdlib.modules(held_out=side) for side in (False, True))
    assert len(training) > 300 and 0.02 < len(held_out) / len(training) < 0.12
    assert not set(training) & set(held_out)
    assert not [path for path in (*training, *held_out) if {"test", "tests", "site-packages"} & set(path.parts)]
    names = {path.name for path in (*training, *held_out)}
    assert {"ast.py", "argparse.py", "pathlib.py"} <= names


def test_the_side_depends_on_the_path_alone():
    assert stdlib.is_held_out(Path("contextlib.py")) and stdlib.is_held_out(Path("pathlib.py"))
    assert not stdlib.is_held_out(Path("ast.py"))


def test_batches_are_windows_of_three_lengths_and_what_follows():
    tokens = stdlib.Stream(torch.arange(5000))
    shapes = set()
    for step in range(12):
        inputs, targets = tokens.draw(2, torch.Generator().manual_seed(step))
        assert torch.equal(targets, inputs + 1) and torch.equal(inputs, inputs[:, :1] + torch.arange(inputs.shape[1]))
        again, _ = tokens.draw(2, torch.Generator().manual_seed(step))
        assert torch.equal(inputs, again)
        shapes.add(tuple(inputs.shape))
    assert shapes == {(2, 512), (4, 256), (8, 128)}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_any_model_reads_it_with_its_own_tokenizer(kind, short, tmp_path):
    other = open_model(f"hf:{saved.save(kind, tmp_path / kind)}")
    data = open_data("stdlib", other, samples=12, calibration=8, length=16, seed=1)
    assert data.task == other.source["task"]
    assert [len(value) for value in data.inputs.values()] == [4] * len(other.example_inputs)
    assert {len(value) for value in data.calibration.values()} == {8}
    assert (data.calibration_targets is None) == (data.task == "embedding")


def test_what_calibrates_comes_from_modules_that_train(short, few, model):
    data = open_data("stdlib", model, samples=20, calibration=12, length=32, seed=2)
    assert data.inputs["input_ids"].shape == data.targets.shape == (8, 32)
    assert torch.equal(data.targets[:, :-1], data.inputs["input_ids"][:, 1:])
    reader = stdlib.tokenizer()
    for side, rows in ((True, data.inputs["input_ids"]), (False, data.calibration["input_ids"])):
        joined = stdlib.END.join(few[side])
        for text in reader.decode_batch(rows.tolist(), skip_special_tokens=False):
            assert all(part in joined for part in text.split(stdlib.END) if "\ufffd" not in part)
    again, other = (open_data("stdlib", model, samples=20, calibration=12, length=32, seed=seed) for seed in (2, 3))
    assert data.sha256 == again.sha256 != other.sha256


def test_the_shipped_decoder_writes_python(short, model):
    data = open_data("stdlib", model, samples=24, calibration=1, length=256)
    found = quality(model, data, samples=1, seed=0).measure(model.module).metrics
    assert found["loss"] < HELD_OUT


def test_a_long_row_begins_like_a_short_one(model):
    tokens = torch.randint(stdlib.TOKENS, (1, 2048), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        long, short = model.module(tokens)[:, :64], model.module(tokens[:, :64])
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-4)


def test_a_cut_decoder_still_reads_text_and_generates(short, tmp_path):
    import surgery
    from surgery.generation import generate

    spec = "model zoo:code-gpt\ndata stdlib length=32 samples=8 calibration=4\n"
    spec += "prune 25% of mlp channels by magnitude compensate=none\n"
    apply(spec, tmp_path / "cut", timing=False)
    module = surgery.load(tmp_path / "cut")
    prompt = torch.tensor([stdlib.tokenizer().encode("def read(self, ").ids])
    cached, whole = (generate(module, prompt, max_new_tokens=8, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, whole) and len(cached[0]) > len(prompt[0])
    text = tmp_path / "some.py"
    text.write_text("".join(f"x{number} = {number}\n" for number in range(200)))
    opened = open_model(str(tmp_path / "cut"))
    assert opened.default_data == "stdlib" and module.meta["generation"]["eos_token_id"] == 0
    assert open_data(f'text:"{text}"', opened, length=32, samples=4).inputs["input_ids"].shape == (2, 32)


def test_a_path_is_refused(model):
    with pytest.raises(SurgeryError) as caught:
        open_data("stdlib:json", model)
    assert caught.value.diagnostics[0].code == "S211"


HELD_OUT = 2.9
"""Nats per token of these modules."""
