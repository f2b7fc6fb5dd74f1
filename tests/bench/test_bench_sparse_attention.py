"""The benchmark of sparse attention: what it asks for, what it reads out of a report, what it writes."""

import json

import pytest
import surgery
from surgery.diagnostics import UnprovenError

from bench import sparse_attention

CONTROLS = [{"name": "random", "metrics": {"loss": 3.0, "accuracy": 0.1, "other": 1.0}}]


def report(kept: float, loss: float) -> dict:
    return {
        "quality": [{"metric": "loss", "before": 0.01, "after": loss}, {"metric": "accuracy", "before": 1.0, "after": 0.99}],
        "findings": [
            {"kind": "edges", "sites": [{"kept": [kept, kept]}]},
            {"kind": "training", "target": 0.02, "best_step": 7, "state": "finished"},
        ],
        "controls": CONTROLS,
        "parity": [{"holds": True}],
    }


@pytest.fixture
def asked(monkeypatch):
    """Every spec that was compiled."""
    specs = []

    def compile(model, spec, **options):
        specs.append(spec)
        found = report(0.004 / len(specs), 0.01 * len(specs))
        if len(specs) > 1:
            error = UnprovenError("a requirement does not hold", code="S600")
            error.report = found
            raise error
        return type("Result", (), {"report": found})

    monkeypatch.setattr(surgery, "compile", compile)
    return specs


def test_a_line_per_tolerance_and_seed(asked, capsys):
    assert sparse_attention.main(["--tolerances", "0.01,5%", "--seeds", "3,4", "--options", "steps=9", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["tolerance"], line["seed"]) for line in lines] == [("0.01", 3), ("0.01", 4), ("5%", 3), ("5%", 4)]
    assert asked[0] == "model zoo:tasks-gpt\nsparsify attention via gates tolerance=0.01 seed=3 steps=9\n"
    assert lines[0]["kept"] == pytest.approx(0.004) and lines[0]["best_step"] == 7
    assert lines[1]["rise"] == pytest.approx(0.01) and lines[1]["rise_share"] == pytest.approx(1.0)
    assert lines[0]["controls"] == [{"name": "random", "loss": 3.0, "accuracy": 0.1}]


def test_specs_are_checked_as_they_are_written(asked):
    options = ["--share", "99.6%", "--target", "attention in layers 0..1", "--data", "tasks samples=64", "--quick", "--json"]
    sparse_attention.main(options)
    (operation,) = (each for each in surgery.check(asked[0]).operations if each.verb == "sparsify")
    assert operation.via == "gates" and operation.steps == 20 and operation.tolerance.value == 0.2
    assert len(asked) == 1


def test_what_was_measured_is_written_behind_each_run(asked, tmp_path):
    out = tmp_path / "found" / "tasks.json"
    sparse_attention.main(["--tolerances", "0.01", "--seeds", "0,1", "--out", str(out)])
    document = json.loads(out.read_text())
    (row,) = document["summary"]
    assert row["kept"] == pytest.approx(0.003) and (row["least"], row["most"]) == pytest.approx((0.002, 0.004))
    assert row["controls"] == {"random": 3.0} and row["seeds"] == 2
    assert len(document["rows"]) == 2 and "<svg" in out.with_suffix(".svg").read_text()


def test_documents_of_runs_beside_each_other_are_joined(asked, tmp_path):
    parts = [tmp_path / f"{tolerance}.json" for tolerance in ("0.01", "5%")]
    for part in parts:
        sparse_attention.main(["--tolerances", part.stem, "--seeds", "0", "--out", str(part)])
    whole = tmp_path / "whole.json"
    assert sparse_attention.main(["--join", *map(str, parts), "--out", str(whole)]) == 0
    rows = json.loads(whole.read_text())["rows"]
    assert [row["tolerance"] for row in rows] == ["0.01", "5%"] and all("bench" in row["command"] for row in rows)
    assert len(asked) == 2, "nothing is measured again"


def test_it_is_readable_as_a_table(asked, capsys):
    sparse_attention.main(["--tolerances", "0.01", "--seeds", "0"])
    text = capsys.readouterr().out
    assert "0.400%" in text and "99.00%" in text
