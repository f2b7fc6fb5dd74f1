"""`surgery show` from the command line."""

import json

import pytest
import torch
from torch import nn

from surgery.cli import main

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3))
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(3, 2)), (torch.randn(2, 3),)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of a small model whose last layer a clause touched."""
    from surgery.bundle import save
    from surgery.passes.provenance import Provenance, stamp

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3))), nn.Linear(3, 2)
    )
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model.eval(), (torch.randn(2, 3),), dynamic_shapes=({0: batch},), strict=False)
    graph_module = program.module(check_guards=False)
    last = [node for node in graph_module.graph.nodes if node.op == "call_function"][-1]
    stamp(last, Provenance("prune 50% of mlp channels", "s.surgery:2:1", "prune"))
    return str(save(tmp_path_factory.mktemp("bundles") / "bundle", graph_module, manifest={}))


def test_code_is_the_default(bundle, capsys):
    assert main(["show", bundle]) == 0
    out = capsys.readouterr().out
    assert out == _shown(bundle, capsys, "--code")
    assert "# 0.1 … 0.2: same as 0.0" in out and "# ✂ prune 50% of mlp channels (s.surgery:2)" in out


def test_tree_dot_and_touched(bundle, capsys):
    assert "✂ prune 50% of mlp channels (s.surgery:2)" in _shown(bundle, capsys, "--tree")
    assert _shown(bundle, capsys, "--dot").startswith("digraph model {")
    assert "relu" not in _shown(bundle, capsys, "--touched")
    assert "same as" not in _shown(bundle, capsys, "--full")
    assert "h1_0 = linear" in _shown(bundle, capsys, "--site", "0.1")


def test_colour_adds_nothing_but_colour(bundle, capsys):
    plain, coloured = _shown(bundle, capsys), _shown(bundle, capsys, "--color", "always")
    from rich.text import Text

    assert "\x1b[" in coloured and Text.from_ansi(coloured).plain.strip() == plain.strip()


def test_json_is_one_document(bundle, capsys):
    document = json.loads(_shown(bundle, capsys, "--json"))
    assert document["format"] == "surgery.show/1" and document["parameters"] == 44
    assert len(document["nodes"]) == 7
    assert [node["touched"][0]["place"] for node in document["nodes"] if node["touched"]] == ["s.surgery:2:1"]


def test_a_site_that_is_not_there(bundle, capsys):
    assert main(["show", bundle, "--site", "0.9"]) == 1
    assert "error[S361]: no module `0.9` in this graph" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert main(["show", "no/such/folder"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "error[S201]" in captured.err


def test_two_forms_at_once_are_a_usage_error(bundle, capsys):
    assert main(["show", bundle, "--tree", "--dot"]) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "shown_model.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return "shown_model:make"


def test_a_model_from_a_python_function(factory, capsys):
    assert "h0_0 = linear(" in _shown(factory, capsys)


def _shown(model: str, capsys, *options: str) -> str:
    assert main(["show", model, *options]) == 0
    return capsys.readouterr().out
