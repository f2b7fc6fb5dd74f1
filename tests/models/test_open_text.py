"""Text, JSON lines and pictures become a model's own inputs, held-out rows and rows to calibrate on."""

import json

import pytest
import saved
import torch

from surgery.check import check
from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel, open_model
from surgery.models.data import open_data

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def models(root):
    return {kind: open_model(f"hf:{saved.save(kind, root / kind)}") for kind in saved.KINDS}


@pytest.fixture(scope="module")
def text(root):
    return saved.corpus(root / "corpus.txt")


def rows(tensors):
    return {tuple(row) for row in tensors["input_ids"].tolist()}


def refusal(reference, model, **settings):
    with pytest.raises(SurgeryError) as caught:
        open_data(reference, model, **settings)
    return caught.value.diagnostics[0]


def told(fault):
    return " ".join([fault.message, *fault.notes, fault.help])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_that_writes_reads_windows_of_the_text_as_it_stands(kind, models, text):
    data = open_data(f'text:"{text}"', models[kind], length=16, samples=20, calibration=8, seed=3)
    assert data.task == "causal-lm" and list(data.inputs) == ["input_ids", "attention_mask"]
    assert data.inputs["input_ids"].shape == (12, 16) and data.calibration["input_ids"].shape == (8, 16)
    assert data.inputs["attention_mask"].all()
    assert torch.equal(data.targets[:, :-1], data.inputs["input_ids"][:, 1:]) and (data.targets[:, -1] == -100).all()
    stream = saved.tokenizer(ends=False)(text.read_text(), add_special_tokens=False)["input_ids"]
    cut = {tuple(stream[first : first + 16]) for first in range(0, len(stream) - 15, 16)}
    assert rows(data.inputs) | rows(data.calibration) <= cut


def test_held_out_and_calibration_rows_share_nothing_and_depend_on_the_seed_alone(models, text):
    one, same, other = (
        open_data(f"text:{text}", models["bert"], samples=100, seed=seed, calibration=40) for seed in (1, 1, 2)
    )
    assert len(rows(one.inputs)) == 60 and len(rows(one.calibration)) == 40
    assert not rows(one.inputs) & rows(one.calibration)
    assert torch.equal(one.inputs["input_ids"], same.inputs["input_ids"])
    assert not torch.equal(one.calibration["input_ids"], other.calibration["input_ids"])


def test_a_line_that_is_there_twice_counts_once(models, tmp_path):
    path = tmp_path / "twice.txt"
    path.write_text("word1 word2\n\nword3\nword1 word2\nword4 word5 word6\n" * 9)
    assert len(rows(open_data(f"text:{path}", models["bert"], calibration=1).inputs)) == 2
    assert "3 different lines" in refusal(f"text:{path}", models["bert"], samples=4).message


def test_an_encoder_reads_a_padded_row_per_line(models, text):
    data = open_data(f"text:{text}", models["bert"], samples=30, length=8)
    ids, mask = data.inputs["input_ids"], data.inputs["attention_mask"]
    assert data.task == "embedding" and ids.shape == (15, 8) and data.targets is None
    assert (ids[:, 0] == 2).all() and torch.equal(mask == 0, ids == 0) and (mask == 0).any()


def test_hidden_words_are_named_and_the_same_for_a_seed(models, text):
    one, same, other = (open_data(f"text:{text}", models["bert-masked"], samples=100, seed=s) for s in (1, 1, 2))
    hidden = one.inputs["input_ids"] == 4
    assert torch.equal(hidden, one.targets != -100) and hidden.any(1).all()
    real = (one.inputs["attention_mask"] == 1) & (one.inputs["input_ids"] > 4) | hidden
    assert 0.1 < float(hidden.sum() / real.sum()) < 0.3
    assert (one.targets[hidden] > 4).all() and (one.calibration["input_ids"] == 4).any()
    assert torch.equal(one.inputs["input_ids"], same.inputs["input_ids"])
    assert not torch.equal(hidden, other.inputs["input_ids"] == 4)


def test_an_encoder_decoder_reads_a_half_and_writes_the_other(models, text):
    data = open_data(f"text:{text}", models["t5"], length=16, samples=10)
    decoder = data.inputs["decoder_input_ids"]
    assert decoder.shape == data.targets.shape == (5, 8) and (decoder[:, 0] == 0).all()
    assert torch.equal(decoder[:, 1:], data.targets[:, :-1])


def test_json_lines(models, tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"id": index, "body": f"word{index}\nword{index + 1}"} for index in range(12)]
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    data = open_data(f"jsonl:{path}", models["bert"], field="body", samples=12, calibration=6)
    assert data.inputs["input_ids"].shape == (6, 4)
    stream = open_data(f"jsonl:{path}", models["gpt2"], field="body", length=3, samples=12)
    assert (stream.inputs["input_ids"][:, 2] == 3).all(), "a record ends with the tokenizer's own end"
    fault = refusal(f"jsonl:{path}", models["bert"], field="bodi")
    assert fault.code == "S212" and "line 1" in fault.message and fault.help == "did you mean `body`?"
    path.write_text('{"text": "word1"}\nnot json\n')
    assert "line 2 is not JSON" in refusal(f"jsonl:{path}", models["bert"]).message


def test_pictures_in_folders_named_like_classes(models, tmp_path):
    from PIL import Image

    for index in range(6):
        folder = tmp_path / f"LABEL_{index % 3}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), (40 * index, 255, 0)).save(folder / f"{index}.png")
    Image.new("RGB", (20, 10), (0, 255, 0)).save(tmp_path / "LABEL_0" / "twin.png")
    data = open_data(f'images:"{tmp_path}"', models["vit"], calibration=2)
    pixels = data.inputs["pixel_values"]
    assert pixels.shape == (4, 3, 8, 8) and data.calibration["pixel_values"].shape == (2, 3, 8, 8)
    index = ((pixels[:, 0, 0, 0] + 1) / 2 * 255 / 40).round().long()
    assert torch.equal(data.targets, index % 3)
    assert (pixels[:, 1] == 1).all() and (pixels[:, 2] == -1).all()
    assert "holds 6 different pictures" in refusal(f"images:{tmp_path}", models["vit"], samples=7).message
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png` cannot be read" in refusal(f"images:{tmp_path}", models["vit"]).message


def test_pictures_follow_the_preprocessor(models, tmp_path):
    from dataclasses import replace

    from PIL import Image

    settings = {"size": {"shortest_edge": 16}, "image_mean": [0.0, 0.5, 0.0], "image_std": [1.0, 0.25, 1.0]}
    files = {"preprocessor_config.json": json.dumps(settings | {"do_resize": True}).encode()}
    model = replace(models["vit"], source=models["vit"].source | {"tokenizer_files": files})
    wide = Image.new("RGB", (64, 16), (0, 0, 0))
    wide.paste((51, 255, 0), (28, 4, 36, 12))
    wide.save(tmp_path / "a.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    data = open_data(f"images:{tmp_path}", model, calibration=0)
    (middle,) = [row for row in data.inputs["pixel_values"] if row[0].max() > 0]
    assert torch.allclose(middle, torch.tensor([0.2, 2.0, 0.0]).view(3, 1, 1).expand(3, 8, 8))
    assert data.calibration is None and data.targets is None


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"samples": 500}, "S212", "write `samples="),
        ({"length": 33}, "S212", "has 32 positions"),
        ({"samples": 4, "calibration": 4}, "S212", "leaves none"),
        ({"lenght": 4}, "S211", "did you mean `length`?"),
        ({"field": "text"}, "S211", "has no setting `field`"),
    ],
)
def test_settings_that_do_not_fit(models, text, settings, code, words):
    fault = refusal(f"text:{text}", models["gpt2"], **settings)
    assert fault.code == code and words in told(fault), told(fault)


def test_files_and_models_that_do_not_fit(models, tmp_path, text):
    assert refusal(f"text:{tmp_path / 'absent.txt'}", models["bert"]).code == "S201"
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    assert "not UTF-8" in refusal(f"text:{tmp_path / 'latin.txt'}", models["bert"]).message
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "gives 0 different lines" in refusal(f"text:{tmp_path / 'empty.txt'}", models["bert"]).message
    assert "pixel_values" in refusal(f"text:{text}", models["vit"]).message
    assert "input_ids" in refusal(f"images:{tmp_path}", models["bert"]).message
    plain = LoadedModel("tests:plain", torch.nn.Identity(), {"input_ids": torch.ones(2, 4, dtype=torch.long)})
    assert "no tokenizer" in refusal(f"text:{text}", plain).message


def test_a_tokenizer_of_no_words_or_of_too_many(models, text):
    from dataclasses import replace

    source = models["bert"].source
    alone = {"tokenizer_config.json": source["tokenizer_files"]["tokenizer_config.json"]}
    fault = refusal(f"text:{text}", replace(models["bert"], source=source | {"tokenizer_files": alone}))
    assert fault.code == "S212" and "no tokenizer" in fault.message
    small = replace(models["bert"], source=source | {"config": source["config"] | {"vocab_size": 30}})
    assert "but the model knows 30 tokens" in refusal(f"text:{text}", small).message
    broken = source["tokenizer_files"] | {"tokenizer.json": b"{}"}
    fault = refusal(f"text:{text}", replace(models["bert"], source=source | {"tokenizer_files": broken}))
    assert fault.code == "S212" and "cannot be read" in fault.message


def test_a_spec_says_all_of_it():
    spec = 'data jsonl:"a.jsonl" field=body length=512 samples=128 calibration=25% seed=7; prune 25% of mlp channels'
    settings = check(spec).data.settings
    assert (settings["length"], settings["field"], settings["calibration"].of(128)) == (512, "body", 32)
