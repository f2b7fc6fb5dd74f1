"""`surgery check`: what was understood, or what is wrong, for people and programs."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from surgery.cli import main

GOOD = "model zoo:digits-dit\nrequire loss <= 1.02x\nprune tail 66% of class embeddings\nanalyze embeddings\n"
UNDERSTOOD = """\
{name}: 2 operations, 1 requirement
  given    model zoo:digits-dit
  analyze  analyze embeddings
  shrink   prune tail 66% of class embeddings
  verify   require loss <= 1.02x
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.surgery"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.surgery"
    path.write_text("prue 5% of x\nprune 166% of x\n")
    return str(path)


def test_understood(good, capsys):
    assert main(["check", good]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (UNDERSTOOD.format(name=good), "")


def test_quiet(good, bad, capsys):
    assert main(["check", "--quiet", good]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["check", "--quiet", bad]) == 1
    assert "S103" in capsys.readouterr().err


def test_all_faults_of_all_files(good, bad, tmp_path, capsys):
    assert main(["check", bad, good, str(tmp_path / "none.surgery"), str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == UNDERSTOOD.format(name=good)
    assert [line.partition(":")[0] for line in captured.err.splitlines() if line.startswith("error")] == [
        "error[S103]",
        "error[S109]",
        "error[S010]",
        "error[S010]",
    ]


def test_json(good, bad, capsys):
    assert main(["check", "--json", good, bad]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["format"] == "surgery.check/1"
    first, second = told["files"]
    assert first["ok"] and first["model"] == "zoo:digits-dit" and first["data"] is None
    assert [(one["verb"], one["phase"], one["place"]) for one in first["operations"]] == [
        ("analyze", "analyze", "good.surgery:4:1"),
        ("prune", "shrink", "good.surgery:3:1"),
    ]
    assert not second["ok"]
    assert [(one["code"], one["line"], one["column"]) for one in second["diagnostics"]] == [
        ("S103", 1, 1),
        ("S109", 2, 7),
    ]


@pytest.mark.parametrize(("data", "status"), [(GOOD.encode(), 0), (b"- analyze\n", 0), (b"", 1), (b"\xff", 1)])
def test_standard_input(data, status, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["check", "-"]) == status
    assert ("<stdin>" in capsys.readouterr().err) is (status == 1 and data != b"")


@pytest.mark.parametrize(
    ("choice", "environment", "colored"),
    [("always", {}, True), ("never", {}, False), ("auto", {}, False), ("always", {"NO_COLOR": "1"}, True)],
)
def test_color(bad, choice, environment, colored, monkeypatch, capsys):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert main(["check", bad, "--color", choice]) == 1
    assert ("\x1b[" in capsys.readouterr().err) is colored


@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_color_of_a_terminal(environment, colored, monkeypatch):
    from surgery.cli.terminal import use_color

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert use_color("auto", SimpleNamespace(isatty=lambda: True)) is colored
