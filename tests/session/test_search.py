"""`prune auto`: the largest share under the spec's demands, every trial told; refused where nothing limits it."""

from io import StringIO

import pytest
import saved

import surgery
from surgery.diagnostics import SpecError, UnprovenError
from surgery.report.html import html
from surgery.report.terminal import render
from surgery.session.search import STEPS

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    folder = saved.save("bert", root / "bert")
    saved.corpus(root / "corpus.txt")
    given = [f"model hf:{folder}", f'data text:"{root}/corpus.txt" length=16 samples=48']
    return lambda *clauses: "\n".join([*given, *clauses])


def apply(text: str):
    return surgery.apply(text, timing=False, controls=False)


@pytest.fixture(scope="module")
def report(spec):
    return apply(spec("prune auto of mlp channels by effect", "require embedding cosine >= 0.9")).report


def test_the_largest_share_that_holds(report):
    found = report["search"]
    shares = [trial["share"] for trial in found["trials"]]
    assert shares == sorted(shares) and 4 <= len(shares) <= STEPS.bit_length()
    assert found["holds"] and found["share"] == max(trial["share"] for trial in found["trials"] if trial["holds"])
    above = [trial for trial in found["trials"] if trial["share"] > found["share"]]
    assert above and above[0]["share"] == found["share"] + 1 / STEPS and not above[0]["holds"]
    (cosine,) = [row["after"] for row in report["quality"] if row["metric"] == "embedding cosine"]
    (taken,) = [trial for trial in found["trials"] if trial["share"] == found["share"]]
    assert taken["metrics"]["embedding cosine"] == cosine
    removed = {action["before"]["width"] - action["after"]["width"] for action in report["actions"]}
    assert removed == {round(24 * found["share"])}
    assert all(row["holds"] for row in report["parity"] + report["requirements"])


def test_where_no_share_holds_the_run_fails_and_tells_what_was_tried(spec, monkeypatch):
    monkeypatch.setattr("surgery.session.search.STEPS", 8)
    with pytest.raises(UnprovenError) as caught:
        apply(spec("prune auto of attention heads", "require embedding cosine >= 1.01"))
    found = caught.value.report["search"]
    assert not found["holds"] and found["share"] == min(trial["share"] for trial in found["trials"])


def test_it_is_drawn_and_printed(report):
    from rich.console import Console

    assert '<section id="search">' in html(report) and "share cut" in html(report)
    render(report, Console(file=(text := StringIO()), width=80))
    assert "shares tried" in text.getvalue() and "taken" in text.getvalue()


@pytest.mark.parametrize("more", ["", "require parameters <= 0.9x", "require latency <= 0.5x; require size <= 0.9x"])
def test_nothing_that_limits_it_is_a_fault_of_the_spec(more):
    with pytest.raises(SpecError) as caught:
        surgery.check(f"model zoo:digits-dit; prune auto of mlp channels; {more}".rstrip("; "))
    assert [one.code for one in caught.value.diagnostics] == ["S123"] and caught.value.diagnostics[0].help


def test_the_plan_leaves_it_open_and_the_clause_goes_round(spec):
    text = spec("prune auto of mlp channels", "require embedding cosine >= 0.9")
    plan = surgery.plan(None, text)
    assert all(action.before == action.after and "auto" in action.notes[0] for action in plan.actions)
    assert "prune auto of mlp channels" in surgery.format(surgery.parse(text))
