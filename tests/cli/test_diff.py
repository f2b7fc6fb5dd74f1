"""`surgery diff` from the command line."""

import json

import pytest
import torch

from surgery.cli import main


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The digits model saved as it is, and with one entry of one weight changed."""
    from surgery.bundle import save
    from surgery.inspection import open_graph

    folder = tmp_path_factory.mktemp("bundles")
    graph_module = open_graph("zoo:digits-dit")
    same = save(folder / "same", graph_module, manifest={})
    with torch.no_grad():
        graph_module.get_parameter("blocks.3.mlp.fc1.weight")[0, 0] += 1.0
    changed = save(folder / "changed", graph_module, manifest={})
    return str(same), str(changed)


def test_a_bundle_of_an_untouched_model_is_identical_with_it(bundles, capsys):
    assert main(["diff", "zoo:digits-dit", bundles[0], "--exit-code"]) == 0
    assert "identical: " in capsys.readouterr().out


def test_a_difference_is_told_and_ends_with_0(bundles, capsys):
    assert main(["diff", *bundles]) == 0
    out = capsys.readouterr().out
    assert "~ blocks.3.mlp.fc1.weight" in out and "max |Δ| 1, < 0.1 % of entries" in out


def test_exit_code_is_asked_for(bundles, capsys):
    assert main(["diff", *bundles, "--exit-code", "--quiet"]) == 1
    assert capsys.readouterr().out == ""


def test_json_is_one_document(bundles, capsys):
    assert main(["diff", *bundles, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "surgery.diff/1" and document["identical"] is False
    assert [change["name"] for change in document["tensors"]["changes"]] == ["blocks.3.mlp.fc1.weight"]
    assert document["nodes"]["changes"] == []


def test_colour_on_request(bundles, capsys):
    assert main(["diff", *bundles, "--color", "always"]) == 0
    assert "\x1b[33m~ blocks.3.mlp.fc1.weight" in capsys.readouterr().out


def test_a_model_that_is_not_there(bundles, capsys):
    assert main(["diff", bundles[0], "no/such/folder"]) == 1
    assert "error[S201]" in capsys.readouterr().err
