"""What a narrower layer is refitted to, against least squares written out on the rows themselves."""

import pytest
import torch

from surgery.compensation.eliminate import eliminate, saliency
from surgery.compensation.observed import Observed
from surgery.compensation.reconstruct import Reader, reconstruct, unexplained, without

ROWS, WIDTH, OUTPUTS = 400, 12, 5
KEEP = torch.tensor([0, 2, 3, 5, 6, 7, 10])


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features far from zero, and a drift that they partly tell."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    x = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64) @ mixing + 30
    drift = x @ torch.randn(WIDTH, OUTPUTS, generator=draw, dtype=torch.float64) / 10
    return x, drift + torch.randn(ROWS, OUTPUTS, generator=draw, dtype=torch.float64)


def reader(bias: bool) -> Reader:
    draw = torch.Generator().manual_seed(9)
    weight = torch.randn(OUTPUTS, WIDTH, generator=draw, dtype=torch.float64)
    return Reader(weight, torch.randn(OUTPUTS, generator=draw, dtype=torch.float64) if bias else None)


def seen(x: torch.Tensor, drift: torch.Tensor | None, pieces: int = 7):
    sums = Observed(x[:5].mean(0), OUTPUTS)
    for chunk in torch.arange(len(x)).tensor_split(pieces):
        sums.add(x[chunk], None if drift is None else drift[chunk])
    return sums.settled()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("drifted", [True, False])
def test_it_is_the_explicit_solution(bias, drifted):
    x, drift = rows()
    drift = drift if drifted else torch.zeros_like(drift)
    layer, moments = reader(bias), seen(x, drift if drifted else None)
    wanted = x @ layer.weight.T + drift + (layer.bias if bias else 0.0)
    given = torch.cat([x[:, KEEP], torch.ones(ROWS, 1).double()], 1) if bias else x[:, KEEP]
    solution = torch.linalg.lstsq(given, wanted, driver="gelsd").solution
    made = reconstruct(layer, moments, KEEP, ridge=0.0)
    assert torch.allclose(made.weight, solution[: len(KEEP)].T, atol=1e-7)
    assert (made.bias is None) == (not bias)
    left = (given @ solution - wanted).square().sum()
    whole = (wanted - wanted.mean(0)).square().sum() if bias else wanted.square().sum()
    assert unexplained(layer, made, moments, KEEP) == pytest.approx(float(left / whole), rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_error_of_a_plain_cut_on_other_rows(bias):
    x, drift = rows(1)
    layer, made = reader(bias), without(reader(bias), KEEP)
    wanted, got = x @ layer.weight.T + drift, x[:, KEEP] @ made.weight.T
    whole = (wanted - wanted.mean(0)).square().sum() if bias else wanted.square().sum()
    told = unexplained(layer, made, seen(x, drift), KEEP)
    assert told == pytest.approx(float((wanted - got).square().sum() / whole), rel=1e-6)


def test_keeping_all_changes_nothing():
    x, _ = rows()
    made = reconstruct(reader(True), seen(x, None), torch.arange(WIDTH), ridge=1e-2)
    assert torch.allclose(made.weight, reader(True).weight) and torch.allclose(made.bias, reader(True).bias)


def test_features_that_never_vary_and_twins_do_no_harm():
    x, _ = rows()
    x[:, 3] = 1.5
    x[:, 5] = x[:, 6]
    made = reconstruct(reader(True), seen(x, None), KEEP, ridge=0.0)
    assert torch.isfinite(made.weight).all()


@pytest.mark.parametrize("size", [1, 3])
def test_elimination_takes_what_costs_least_each_time(size):
    x, drift = rows()
    layer, moments = reader(True), seen(x, drift)
    groups = torch.arange(WIDTH).reshape(-1, size)
    left = list(range(len(groups)))
    for gone in eliminate(moments.covariance, layer.weight, groups, 3, pull=moments.cross, ridge=1e-12).tolist():
        errors = {g: _error(layer, moments, groups, [u for u in left if u != g]) for g in left}
        assert gone == min(errors, key=errors.get)
        left.remove(gone)


def test_saliency_is_the_cost_of_going_alone():
    x, _ = rows()
    layer, moments, groups = reader(True), seen(x, None), torch.arange(WIDTH)[:, None]
    costs = saliency(moments.covariance, layer.weight, groups, ridge=1e-12)
    alone = [_error(layer, moments, groups, [u for u in range(WIDTH) if u != g]) for g in range(WIDTH)]
    assert torch.allclose(costs / costs.sum(), torch.tensor(alone).double() / sum(alone), rtol=1e-4)


def _error(layer: Reader, moments, groups: torch.Tensor, units: list[int]) -> float:
    keep = groups[units].flatten().sort().values
    return unexplained(layer, reconstruct(layer, moments, keep, ridge=1e-12), moments, keep)
