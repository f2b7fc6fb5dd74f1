"""`surgery plan`: what would be done, from shapes alone; applied later just so, or refused."""

import json
import time
from pathlib import Path

import pytest

from surgery.cli import main

SPEC = "model zoo:digits-dit\ndata digits samples=2 steps=1\nprune tail 66% of class embeddings\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.surgery").write_text(SPEC)
    (tmp_path / "tiny.surgery").write_text("prune tail 50% of class embeddings\n")
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """The zoo's weights are gone."""
    monkeypatch.setattr("surgery.zoo.weights_file", lambda name: tmp_path / "gone.safetensors")


def test_no_weights_are_read(folder, no_weights, capsys):
    started = time.perf_counter()
    assert main(["plan", "my.surgery"]) == 0
    took = time.perf_counter() - started
    assert "width 96 → 33" in capsys.readouterr().out
    assert took < 60, "10 s on a quiet machine; the bound only catches what reads or runs the model"
    assert main(["apply", "my.surgery"]) == 1, "the fixture must really take the weights away"
    assert "S201" in capsys.readouterr().err


def test_as_json(folder, no_weights, capsys):
    assert main(["plan", "my.surgery", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "surgery.plan/1"
    assert document["actions"][0]["place"] == "my.surgery:3:1"
    assert document["size"]["parameters"]["after"] < document["size"]["parameters"]["before"]
    assert document["selectors"][0]["text"] == "class embeddings"


def test_applied_as_planned(folder, capsys):
    assert main(["plan", "tiny.surgery", "--model", "tiny_model:make", "-o", "plan.json"]) == 0
    assert "`surgery apply plan.json --out FOLDER`" in capsys.readouterr().err
    options = ["--model", "tiny_model:make", "--no-timing", "--no-controls", "--json"]
    assert main(["apply", "plan.json", *options]) == 0
    from_plan = json.loads(capsys.readouterr().out)
    assert main(["apply", "tiny.surgery", *options]) == 0
    assert from_plan["quality"] == json.loads(capsys.readouterr().out)["quality"]


def changed(document, key):
    if key == "shape":
        document["model"]["tensors"]["table.weight"] = "float32[5, 16]"
        return "`table.weight` was float32[5, 16], is float32[5, 8]"
    if key == "operations":
        document["model"]["fingerprint"] = "sha256:0"
        return "the model's operations changed"
    document["actions"][0]["after"]["width"] = 3
    return "conditioning: after was {'width': 3}, is {'width': 4}"


@pytest.mark.parametrize("key", ["shape", "operations", "cut"])
def test_a_stale_plan_is_refused_and_says_what_changed(key, folder, capsys):
    assert main(["plan", "tiny.surgery", "--model", "tiny_model:make", "-o", "plan.json", "-q"]) == 0
    document = json.loads(Path("plan.json").read_text())
    told = changed(document, key)
    Path("plan.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert main(["apply", "plan.json", "--model", "tiny_model:make", "--out", "half"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error[S401]") and told in err and "= help:" in err
    assert not Path("half").exists()


def test_a_plan_from_a_stranger_runs_no_code(folder, capsys):
    assert main(["plan", "tiny.surgery", "--model", "tiny_model:make", "-o", "plan.json"]) == 0
    assert main(["apply", "plan.json"]) == 1
    assert "error[S207]" in capsys.readouterr().err


def test_a_truncated_plan(folder, capsys):
    assert main(["plan", "tiny.surgery", "--model", "tiny_model:make", "-o", "plan.json"]) == 0
    text = Path("plan.json").read_text()
    Path("plan.json").write_text(text[: len(text) // 2])
    assert main(["apply", "plan.json"]) == 1
    assert "error[S403]" in capsys.readouterr().err


@pytest.mark.parametrize("document", [{}, {"spec": 3}, {"spec": "analyze", "model": []}])
def test_a_plan_that_lacks_what_it_is_made_of(document, folder, capsys):
    Path("plan.json").write_text(json.dumps({"format": "surgery.plan/1"} | document))
    assert main(["apply", "plan.json"]) == 1
    assert "error[S403]" in capsys.readouterr().err


def test_a_plan_that_cannot_be_written(folder, capsys):
    assert main(["plan", "tiny.surgery", "--model", "tiny_model:make", "-o", "absent/plan.json"]) == 1
    assert "error[S402]" in capsys.readouterr().err
    assert sorted(file.name for file in folder.iterdir()) == ["my.surgery", "tiny.surgery"]
