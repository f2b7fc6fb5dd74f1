"""Many layers cut alike are one line."""

import pytest

from surgery.report.alike import folded, folded_names, ranged


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.0.mlp", "a.1.mlp", "a.2.mlp"], "a.0..2.mlp"),
        (["a.0.mlp", "a.2.mlp", "a.3.mlp"], "a.0,2,3.mlp"),
        (["a.4.mlp", "a.5.mlp"], "a.4,5.mlp"),
        (["e.0.b.1", "e.0.b.2", "e.0.b.3"], "e.0.b.1..3"),
        (["e.0.b.1", "e.1.b.2"], "e.0.b.1 + 1 more"),
    ],
)
def test_names(names, told):
    assert ranged(names) == told


def action(site: str, after: int = 3) -> dict:
    return {"site": site, "kind": "mlp", "before": {"width": 4}, "after": {"width": after}, "saved": {"parameters": 10}}


def test_neighbours_of_the_same_change_are_one():
    rows = folded([action("a.0.mlp"), action("a.1.mlp"), action("a.2.mlp", 2), action("a.3.mlp"), action("b.4.mlp")])
    assert [row["site"] for row in rows] == ["a.0,1.mlp", "a.2.mlp", "a.3.mlp", "b.4.mlp"]
    assert [row["saved"]["parameters"] for row in rows] == [20, 10, 10, 10]
    assert folded([]) == []


def test_what_a_selector_matched():
    matched = ["a.0.mlp: 4 channels", "a.1.mlp: 4 channels", "a.2.mlp: 5 channels", "a.0", "a.1", "b"]
    assert folded_names(matched) == ["a.0,1.mlp: 4 channels", "a.2.mlp: 5 channels", "a.0,1", "b"]
