"""Requirements: what is measured, what cannot be, and what NaN does."""

import math

import pytest

import surgery
from surgery.check import check
from surgery.diagnostics import SpecError, UnprovenError
from surgery.session.document import finite
from surgery.session.requirements import judge, refuse_broken, refuse_unmeasurable

NAN = float("nan")


def document(before=1.0, after=1.0, metric="accuracy"):
    return {
        "parity": [],
        "quality": [{"metric": metric, "before": before, "after": after}],
        "size": {name: {"before": 100, "after": 70} for name in ("parameters", "bytes", "flops")},
        "latency": [
            {"mode": "eager", "batch": 32, "before_ms": 90.0, "after_ms": 80.0},
            {"mode": "eager", "batch": 1, "before_ms": 10.0, "after_ms": 8.0},
            {"mode": "compiled", "batch": 1, "before_ms": 5.0, "after_ms": 1.0},
        ],
        "memory": {"before": 4000, "after": 3000},
    }


def requires(text):
    return check(f"prune 1% of x\n{text}").requires


HELD = [
    ("require accuracy >= 95%", 0.99, 0.95, True),
    ("require accuracy >= 95%", 0.99, 0.94, False),
    ("require accuracy >= 0.99x", 0.5, 0.495, True),
    ("require accuracy >= 0.99x", 0.5, 0.494, False),
    ("require accuracy >= 0x", 0.99, NAN, False),
    ("require accuracy <= 100x", NAN, 0.99, False),
    ("require accuracy <= 100x", 1.0, float("inf"), False),
    ("require parameters <= 0.7x", 1, 1, True),
    ("require parameters < 70", 1, 1, False),
    ("require size <= 70B", 1, 1, True),
    ("require flops <= 0.69x", 1, 1, False),
    ("require latency <= 8ms", 1, 1, True),
    ("require latency <= 0.79x", 1, 1, False),
    ("require memory <= 3KB", 1, 1, True),
]


@pytest.mark.parametrize(("text", "before", "after", "holds"), HELD)
def test_what_holds(text, before, after, holds):
    found = document(before, after)
    found["requirements"] = judge(requires(text), found)
    (row,) = found["requirements"]
    assert row["holds"] is holds and text.startswith(row["text"].partition(" ")[0])
    if holds:
        refuse_broken(found, requires(text))
        return
    with pytest.raises(UnprovenError) as caught:
        refuse_broken(found, requires(text))
    assert caught.value.diagnostics[0].code == "S602" and caught.value.diagnostics[0].span.text == text
    assert caught.value.report is found and caught.value.exit_code == 3


@pytest.mark.parametrize(("there", "wins"), [("denoising loss", True), ("output error", True), ("accuracy", False)])
def test_what_loss_means(there, wins):
    if not wins:
        with pytest.raises(SpecError, match="S603"):
            refuse_unmeasurable(requires("require loss <= 5%"), (there,))
        return
    refuse_unmeasurable(requires("require loss <= 5%"), (there,))
    assert judge(requires("require loss <= 5%"), document(0.0, 0.04, there))[0]["measured"] == 0.04


def test_every_unmeasurable_requirement_is_told_at_once():
    with pytest.raises(SpecError) as caught:
        refuse_unmeasurable(
            requires("require accuracy >= 1%\nrequire latency <= 1x\nrequire loss <= 1.02x\nrequire size <= 1x"),
            ("output error", "size"),
            {"latency": "the clock is off"},
        )
    told = [(one.code, one.span.text, one.notes) for one in caught.value.diagnostics]
    assert told == [
        ("S603", "require accuracy >= 1%", ("measured: output error, size",)),
        ("S603", "require latency <= 1x", ("the clock is off", "measured: output error, size")),
        ("S604", "require loss <= 1.02x", ()),
    ]


class Untouched(Exception):
    """The costly part of the path began."""


CASES = {
    "accuracy of a module": ("require accuracy >= 90%", {}, "S603"),
    "frechet of noise": ("require frechet <= 2", {}, "S603"),
    "a multiple of an error": ("require loss <= 1.02x", {}, "S604"),
    "latency without the clock": ("require latency <= 1x", {"timing": False}, "S603"),
    "perplexity": ("require perplexity <= 10", {}, "S603"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_before_the_work(case, tiny, monkeypatch):
    text, options, code = CASES[case]

    def work(*_, **__):
        raise Untouched

    monkeypatch.setattr("surgery.session.operate.choose", work)
    model, inputs = tiny
    with pytest.raises(SpecError) as caught:
        surgery.compile(model, f"prune 50% of class embeddings\n{text}", example_inputs=inputs, **options)
    assert [one.code for one in caught.value.diagnostics] == [code]
    assert caught.value.diagnostics[0].help


def test_frechet_of_a_single_sample():
    with pytest.raises(SpecError, match="S603"):
        surgery.compile(
            "zoo:digits-dit",
            "data digits samples=1 steps=1; prune 1% of class embeddings; require accuracy >= 0%; require frechet <= 9",
        )


def test_an_analysis_measures_size_alone(tiny):
    model, inputs = tiny
    result = surgery.compile(model, "analyze; require parameters <= 1x", example_inputs=inputs)
    assert result.report["requirements"][0]["holds"] and result.report["quality"] == []
    with pytest.raises(SpecError, match="S603") as caught:
        surgery.compile(model, "analyze; require loss <= 5%", example_inputs=inputs)
    assert "only analyses" in caught.value.diagnostics[0].notes[0]


def test_finite_documents():
    assert finite({"a": [NAN, math.inf, 1.5, "x", None, True], "b": (2,)}) == {
        "a": [None, None, 1.5, "x", None, True],
        "b": [2],
    }
