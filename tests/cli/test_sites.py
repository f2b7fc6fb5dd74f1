"""`surgery sites`: what there is to cut, by name."""

import json

import pytest

from surgery.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_layers_that_are_alike_are_one_row(capsys):
    assert main(["sites", "zoo:digits-dit"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["attention", "0..7"] in [row[:2] for row in rows]
    assert any(row[0] == "conditioning" for row in rows)
    assert main(["sites", "zoo:digits-dit", "--kind", "attention", "--full"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8


def test_as_json(capsys):
    assert main(["sites", "zoo:digits-dit", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "zoo:digits-dit" and document["format"].startswith("surgery.sites/")
    kinds = {site["kind"] for site in document["sites"]}
    assert {"attention", "mlp", "embedding", "conditioning", "block"} == kinds


FAULTS = {
    ("zoo:digits-dti",): "did you mean `digits-dit`?",
    ("zoo:digits-dit", "--kind", "atention"): "did you mean `attention`?",
    ("absent-folder",): "S201",
    ("tiny_model:absent",): "S208",
    ("tiny_model:without_inputs",): "error[S320]: `tiny_model:without_inputs` comes without example inputs",
}


@pytest.mark.parametrize(("arguments", "told"), FAULTS.items(), ids=" ".join)
def test_faults(arguments, told, capsys):
    assert main(["sites", *arguments]) == 1
    printed = capsys.readouterr()
    assert told in printed.err and "= help:" in printed.err and printed.out == ""
