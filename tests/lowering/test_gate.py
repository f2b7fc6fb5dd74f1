"""The speed gate never lowers to something slower, and remembers what it measured."""

import json
import time

import pytest

from surgery.lowering.crossover import Crossover, Point
from surgery.lowering.gate import DENSE, Question, choose

SHAPE = {"B": 1, "H": 2, "S": 64, "D": 16}


def question(density: float = 0.1, **other) -> Question:
    return Question("attention", {**SHAPE, **other}, "fp32", density)


def takes(milliseconds: float):
    def call() -> None:
        until = time.perf_counter() + milliseconds / 1e3
        while time.perf_counter() < until:
            pass

    return call


def cannot() -> None:
    raise NotImplementedError("no kernel for fp16\nand more")


CHOICES = [
    ({"edge": 1.0, "block": 3.0}, "edge"),
    ({"edge": 8.0, "block": 3.0}, "block"),
    ({"edge": 8.0, "block": 12.0}, DENSE),
    ({}, DENSE),
]


@pytest.mark.parametrize("times, chosen", CHOICES)
def test_takes_the_fastest_or_stays_dense(times, chosen):
    candidates = {name: takes(ms) for name, ms in times.items()}
    decision = choose(question(), takes(5), candidates, crossover=Crossover(None, "here"), clock="wall")
    assert decision.chosen == chosen
    assert decision.sparse == (chosen != DENSE)
    assert set(decision.milliseconds) == {DENSE, *times}
    assert set(decision.rejected) == set(times) - {chosen}
    assert (decision.ratio > 1) == decision.sparse
    json.dumps(decision.document())


def test_a_candidate_that_cannot_run_is_out_with_its_reason():
    decision = choose(question(), takes(1), {"edge": cannot}, crossover=Crossover(None, "here"))
    assert decision.chosen == DENSE
    assert decision.rejected == {"edge": "does not run here: no kernel for fp16"}


def test_the_same_speed_stays_dense():
    """A candidate that is no faster wins by chance half the time unless its quartiles have to be clear of 1."""
    same = takes(1)
    decision = choose(question(), same, {"edge": takes(1.3)}, crossover=Crossover(None, "here"))
    assert decision.chosen == DENSE


def test_measures_once_and_remembers_across_processes(tmp_path):
    calls = []

    def edge() -> None:
        calls.append(1)
        takes(0.3)()

    first = choose(question(0.1), takes(2), {"edge": edge}, crossover=Crossover(tmp_path, "a CPU"))
    assert first.measured and first.chosen == "edge"
    calls.clear()
    again = choose(question(0.05), takes(2), {"edge": edge}, crossover=Crossover(tmp_path, "a CPU"))
    assert not again.measured and again.chosen == "edge" and not calls
    assert "density 10.00%" in again.reason
    denser = choose(question(0.2), takes(2), {"edge": edge}, crossover=Crossover(tmp_path, "a CPU"))
    assert denser.measured and calls
    for other in (Crossover(tmp_path, "another CPU"), Crossover(None, "a CPU")):
        assert choose(question(0.05), takes(2), {"edge": edge}, crossover=other).measured
    assert choose(question(0.05, S=128), takes(2), {"edge": edge}, crossover=Crossover(tmp_path, "a CPU")).measured
    assert choose(
        question(0.05), takes(2), {"edge": edge}, crossover=Crossover(tmp_path, "a CPU"), remeasure=True
    ).measured


VERDICTS = [
    ([], 0.1, None),
    ([Point(0.1, 1, 2, True)], 0.1, True),
    ([Point(0.1, 1, 2, True)], 0.01, True),
    ([Point(0.1, 1, 2, True)], 0.2, None),
    ([Point(0.1, 2, 1, True)], 0.2, False),
    ([Point(0.1, 2, 1, True)], 0.01, None),
    ([Point(0.1, 1, 2, False)], 0.1, False),
    ([Point(0.1, 1, 2, True), Point(0.5, 2, 1, True)], 0.3, None),
    ([Point(0.1, 2, 1, True), Point(0.5, 1, 2, True)], 0.3, None),
]


@pytest.mark.parametrize("points, density, won", VERDICTS)
def test_what_earlier_measurements_decide(points, density, won):
    known = Crossover(None, "here")
    for point in points:
        known.add("key", point)
    verdict = known.verdict("key", density)
    assert (verdict and verdict[0]) == won


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "surgery.crossover/1"}', '{"format": "x", "points": {}}'])
def test_a_damaged_cache_is_measured_anew(tmp_path, text):
    known = Crossover(tmp_path, "here")
    known.path.write_text(text)
    assert Crossover(tmp_path, "here").points == {}


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path):
    tmp_path.joinpath("file").write_text("")
    Crossover(tmp_path / "file" / "folder", "here").add("key", Point(0.1, 1, 2, True))
