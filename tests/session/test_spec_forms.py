"""A spec as text, path, tree or YAML, from any folder: the same bundle, byte for byte."""

import json
import os
from pathlib import Path

import pytest
from tiny_model import make

import surgery
from surgery.session.places import portable, without_folders

TEXT = """\
# half of it goes
data noise samples=8 seed=3
prune tail 50% of class embeddings
require output error <= 200%; require parameters <= 1x
"""
YAML = """\
# half of it goes
data: noise samples=8 seed=3
steps:
  - prune: tail 50%
    of: class embeddings
  - require: output error <= 200%
  - require: parameters <= 1x
"""


def saved(spec, folder):
    """Every file of the bundle that a spec makes of the tiny model, as bytes."""
    model, inputs = make()
    result = surgery.compile(model, spec, example_inputs=inputs, timing=False)
    result.save(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(TEXT, tmp_path_factory.mktemp("forms") / "plain")


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


@pytest.mark.parametrize("form", ["text", "absolute path", "relative path", "tree", "yaml", "yaml file"])
def test_every_form_gives_the_same_bytes(form, plain, tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "my.surgery").write_text(TEXT)
    (folder / "my.yaml").write_text(YAML)
    monkeypatch.chdir(folder)
    spec = {
        "text": TEXT,
        "absolute path": folder / "my.surgery",
        "relative path": "my.surgery",
        "tree": surgery.parse(TEXT),
        "yaml": YAML,
        "yaml file": "my.yaml",
    }[form]
    assert differing(plain, saved(spec, tmp_path / "bundle")) == []


def test_no_document_knows_this_machine(plain, tmp_path):
    (tmp_path / "my.surgery").write_text(TEXT)
    files = saved(tmp_path / "my.surgery", tmp_path / "bundle")
    for path in (tmp_path, Path.cwd(), Path(surgery.__file__).parent, Path.home()):
        told = os.fsencode(path)
        assert len(told) < 3 or not [name for name, content in files.items() if told in content]


def test_places_are_places_in_the_bundle(plain):
    lines = plain["spec.surgery"].decode().splitlines()
    report = json.loads(plain["report.json"])
    for row in (*report["actions"], *report["requirements"], *report["selectors"]):
        file, line, column = row["place"].split(":")
        assert file == "spec.surgery" and column == "1"
        assert (row.get("clause") or row["text"]) in lines[int(line) - 1]
    marks = [mark for node in json.loads(plain["graph.json"])["nodes"] for mark in node.get("marks", ())]
    assert {mark["place"] for mark in marks} == {report["actions"][0]["place"]}


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("zoo:digits-dit", "zoo:digits-dit"),
        ("build/x", "build/x"),
        ("/home/me/x/", "x"),
        ("diffusers:/home/me/dit", "diffusers:dit"),
        ('tensors:"/home/me/in.safetensors"', "tensors:in.safetensors"),
        ("package.module:make", "package.module:make"),
    ],
)
def test_references_without_folders(reference, told):
    assert without_folders(reference) == told
    assert portable({"a": [{"reference": reference}]}, {}) == {"a": [{"reference": told}]}
