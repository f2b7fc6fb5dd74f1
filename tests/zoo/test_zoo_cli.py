"""`surgery zoo`: list, show, train, sample."""

import json

import pytest

from surgery.cli import main

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_list_names_every_model(capsys):
    assert main(["zoo"]) == 0
    printed = capsys.readouterr().out
    assert "zoo:digits-dit " in printed and "zoo:digits-sit " in printed and "zoo:digits-classifier " in printed


def test_the_list_as_json(capsys):
    assert main(["zoo", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "surgery.zoo/1"
    assert "digits-dit" in {model["name"] for model in document["models"]}


def test_show_tells_size_inputs_and_training(capsys):
    assert main(["zoo", "show", "digits-dit", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == 1_079_812
    assert document["inputs"]["x"] == ["torch.float32", 2, 1, 8, 8]
    assert len(document["files"]["digits-dit.safetensors"]) == 64


def test_sample_draws_a_grid(tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["zoo", "sample", "digits-sit", "--out", str(out), "--each", "1", "--steps", "3"]) == 0
    assert out.read_bytes().startswith(PNG)
    assert capsys.readouterr().out.strip() == str(out)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_train_writes_weights_that_sample_reads(tmp_path, capsys):
    weights, grid = tmp_path / "sit.safetensors", tmp_path / "grid.png"
    assert main(["zoo", "train", "digits-sit", "--steps", "2", "--out", str(weights), "-q"]) == 0
    assert main(["zoo", "train", "digits-sit", "--steps", "3", "--out", str(weights), "--resume", "-q"]) == 0
    options = ["--weights", str(weights), "--out", str(grid), "--each", "1", "--steps", "2"]
    assert main(["zoo", "sample", "digits-sit", *options]) == 0
    assert grid.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "digits-dt"], 1, "did you mean `digits-dit`?"),
        (["sample", "digits-classifier", "--out", "grid.png"], 1, "S803"),
        (["sample", "digits-dit", "--out", "grid.png", "--steps", "101"], 1, "at most --steps 100"),
        (["sample", "digits-dit", "--out", "grid.png", "--weights", "absent.safetensors"], 1, "S201"),
        (["train", "digits-dit", "--out", "absent.safetensors", "--resume"], 1, "S802"),
        (["train", "digits-dit", "--steps", "0"], 2, "0 is not a positive number"),
        (["trian", "digits-dit"], 2, "train"),
    ],
)
def test_faults(arguments, code, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", *arguments]) == code
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []
