"""Passes of one clause become one where they have nothing in common, and only there."""

import torch

from surgery.passes.cut_units import CutUnits
from surgery.passes.joined import joined
from surgery.passes.mask_vector import MaskVector
from surgery.passes.set_weights import SetWeights


def cut(*names: str, clause: str = "a") -> CutUnits:
    return CutUnits(clause, "place", {(name, 0): torch.arange(2) for name in names}, ())


def refit(*names: str, clause: str = "a") -> SetWeights:
    return SetWeights(clause, "place", tensors={name: torch.zeros(2) for name in names})


def told(passes: list) -> list[str]:
    """`cut-units: x y` of each."""
    return [f"{each.name}: {' '.join(sorted(each.touched))}" for each in passes]


def test_what_has_nothing_in_common_is_one():
    passes = [cut("x"), refit("u"), cut("y"), refit("v"), cut("z")]
    assert told(joined(passes)) == ["cut-units: x y z", "set-weights: u v"]


def test_a_pass_stays_behind_what_touches_the_same():
    assert told(joined([cut("x"), refit("y"), cut("y")])) == ["cut-units: x", "set-weights: y", "cut-units: y"]
    assert told(joined([cut("x"), cut("x")])) == ["cut-units: x", "cut-units: x"]


def test_clauses_stay_apart():
    passes = [cut("x"), cut("y", clause="b"), cut("z")]
    assert told(joined(passes)) == ["cut-units: x z", "cut-units: y"]


def test_nothing_passes_what_does_not_say_what_it_touches():
    wall = MaskVector("a", "place", (), 4, 2)
    first, between, last = joined([cut("x"), wall, cut("y")])
    assert between is wall and told([first, last]) == ["cut-units: x", "cut-units: y"]
