"""The constrained controller as arithmetic: bounded, of the right sign, and it comes back from a spike."""

import math

import pytest
import torch

from surgery.training.objective import Constrained, Evaluated, Recovery


def driven(losses, **made):
    objective = Constrained(target=1.0, **made)
    trace = []
    for loss in losses:
        objective.update(loss, 0.5)
        trace.append(objective.multiplier)
    return objective, trace


@pytest.mark.parametrize(("loss", "bound"), [(50.0, 1e2), (0.0, 1e-1)])
def test_the_multiplier_stays_within_its_bounds_and_gets_there_slowly(loss, bound):
    _, trace = driven([loss] * 600)
    assert trace[-1] == bound
    assert all(abs(math.log(now / before)) <= 0.02 + 1e-12 for before, now in zip([1.0, *trace], trace, strict=False))


def test_its_sign_is_that_of_the_violation():
    assert driven([1.01] * 5)[0].multiplier > 1 > driven([0.99] * 5)[0].multiplier


def test_it_recovers_from_a_spike():
    """One loss of 50 keeps the constraint tight for some tens of steps, not for good."""
    _, trace = driven([1.0] * 20 + [50.0] + [0.9] * 200)
    assert max(trace) < 4 and trace[-1] < trace[30]


def test_the_total_follows_the_formula_and_adds_up_over_parts():
    objective = Constrained(target=1.0, multiplier=3.0)
    loss, penalty = torch.tensor(2.0), torch.tensor(0.5)
    assert float(objective.total(loss, penalty)) == pytest.approx((0.5 + 3 * 2) / 4)
    parts = objective.total(loss * 0.25, penalty * 0.25) + objective.total(loss * 0.75, penalty * 0.75)
    assert float(parts) == pytest.approx(float(objective.total(loss, penalty)))
    with pytest.raises(ValueError, match="penalty"):
        objective.total(loss, None)


def test_the_best_state_is_the_sparsest_feasible_one():
    objective = Constrained(target=1.0)
    states = [
        Evaluated(1, 3.0, 0.9, False),
        Evaluated(2, 2.0, 0.1, False),
        Evaluated(3, 0.9, 0.8, True),
        Evaluated(4, 1.0, 0.2, True),
        Evaluated(5, 0.8, 0.3, True),
        Evaluated(6, 9.0, 0.01, False),
    ]
    best, kept = states[0], []
    for state in states[1:]:
        if objective.better(state, best):
            best = state
            kept.append(state.step)
    assert kept == [2, 3, 4]


def test_recovery_keeps_the_lowest_loss_and_adds_a_penalty():
    objective = Recovery()
    assert objective.better(Evaluated(1, 1.0), Evaluated(0, 2.0))
    assert not objective.better(Evaluated(1, 2.0), Evaluated(0, 2.0))
    assert float(objective.total(torch.tensor(1.0), torch.tensor(0.5))) == 1.5
