"""The progress of a training: the bar of its steps, and its numbers below."""

import re
import sys
from argparse import Namespace

import pytest

from surgery.cli import progress

STAGES = [
    ("gates: loss 0.0131 · edges 0.41% · multiplier 1.20", ("gates", "loss 0.0131 · edges 0.41% · multiplier 1.20")),
    ("measuring the original", ("measuring the original", "")),
    ("control: random, seed 0", ("control: random, seed 0", "")),
]


def lines(text: str) -> list[str]:
    """What was written, without the codes that move the cursor."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)) if line.strip()]


@pytest.mark.parametrize(("stage", "parts"), STAGES)
def test_numbers_are_told_apart_from_the_stage(stage, parts):
    assert progress.told(stage) == parts


def test_numbers_stand_below_the_bar_and_never_wrap(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar(Namespace(quiet=False, json=False, color="never")) as told:
        told(f"gates: loss 0.0131 · edges 0.41% · multiplier 1.20 · {'x' * 80}", 300, 4000)
    shown = lines(capsys.readouterr().err)
    place = next(place for place, line in enumerate(shown) if line.startswith("gates"))
    bar, numbers = shown[place : place + 2]
    assert "300/4000" in bar and "0:00" in bar
    assert numbers.startswith("  loss 0.0131 · edges 0.41% · multiplier 1.20") and len(numbers) <= 80
    assert not any(line.startswith("x") for line in shown)


def test_a_stage_without_numbers_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar(Namespace(quiet=False, json=False, color="never")) as told:
        told("gates: loss 0.0131 · edges 0.41%", 300, 4000)
        told("measuring the original", 1, 4)
    last = lines(capsys.readouterr().err)[-1]
    assert last.startswith("measuring the original") and "300" not in last
