"""masked == compacted is judged on every output, and NaN never passes."""

import pytest
import torch
from torch.fx import symbolic_trace

from surgery.session.parity import parity


class Pair(torch.nn.Module):
    """Two float outputs and an integer one."""

    def __init__(self, second: float, third: int = 0):
        super().__init__()
        self.second, self.third = second, third

    def forward(self, x):
        return x, x * self.second, (x > 0).long() + self.third


def rows(one, other):
    return parity(symbolic_trace(one), symbolic_trace(other), (torch.ones(2, 3),))


def test_equal_outputs_hold_exactly():
    found = rows(Pair(2), Pair(2))
    assert [row["batch"] for row in found] == [2, 5]
    assert all(row["holds"] and row["max_abs"] == 0 for row in found)


@pytest.mark.parametrize(
    "other", [Pair(2.1), Pair(float("nan")), Pair(float("inf")), Pair(2, third=1)], ids=["off", "nan", "inf", "integer"]
)
def test_a_difference_in_a_later_output_does_not_hold(other):
    assert not any(row["holds"] for row in rows(other, Pair(2)))
    assert not any(row["holds"] for row in rows(Pair(2), other))


def test_outputs_of_integers_alone():
    def third(model):
        class Third(torch.nn.Module):
            def forward(self, x):
                return (x > 0).long() + model.third

        return Third()

    assert all(row["holds"] for row in rows(third(Pair(1)), third(Pair(1))))
    assert not any(row["holds"] for row in rows(third(Pair(1)), third(Pair(1, third=1))))
