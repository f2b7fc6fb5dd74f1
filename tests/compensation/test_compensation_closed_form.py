"""Moments, criteria, greedy selection and least squares against explicit grids."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.compensation import (
    Grid,
    Moments,
    activation,
    consumer_gram,
    effect,
    greedy,
    least_squares,
    magnitude,
    random,
    ranking,
    split,
    unchanged,
)

seeds = st.integers(0, 2**31 - 1)


def case(seed: int, width: int = 12, rows: int = 80, out: int = 20, rank: int | None = None):
    """Correlated features S [rows, width], weights w [rows], consumers W [out, width], b [out]."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    features = normal(rows, rank or width) @ normal(rank or width, width) + 3 * normal(width)
    return features, torch.rand(rows, generator=draw, dtype=torch.float64), normal(out, width), normal(out)


def explicit_error(features, weights, weight, bias, keep, small, shift):
    """The relative error from the rows themselves."""
    share = weights / weights.sum()
    wanted = features @ weight.T + bias
    got = features[:, keep] @ small.T + shift
    mean = share @ wanted
    return float((share @ (wanted - got).square()).sum() / (share @ (wanted - mean).square()).sum())


@given(seeds, st.integers(1, 79))
@settings(max_examples=20, deadline=None)
def test_chunks_give_the_moments_of_the_whole(seed, cut):
    features, weights, _, _ = case(seed)
    whole = Moments.of(features, weights)
    parts = Moments.gather([(features[:cut], weights[:cut]), (features[cut:], weights[cut:])])
    share = weights / weights.sum()
    mean = share @ features
    torch.testing.assert_close(parts.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.covariance, (features - mean).T @ ((features - mean) * share[:, None]))
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(parts.second, features.T @ (features * share[:, None]))
    assert parts.count == 80 and parts.weight == pytest.approx(float(weights.sum()))


def test_moments_survive_a_large_offset():
    features = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = Moments.gather(chunk + 1e6 for chunk in features.split(100))
    torch.testing.assert_close(moved.covariance, Moments.of(features).covariance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Moments.of(torch.ones(2, 3), torch.tensor(weights))


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no chunk"):
        Moments.gather([])


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_grid_is_every_timestep_with_every_class(chunk):
    time, table = torch.randn(5, 3), torch.randn(4, 3)
    weight = torch.rand(5, 4)
    rows, weights = (torch.cat(column) for column in zip(*Grid(time, table, weight).rows(chunk), strict=True))
    torch.testing.assert_close(rows, (time[:, None] + table).flatten(0, 1).double())
    torch.testing.assert_close(weights, weight.flatten().double())


def test_grid_of_mismatched_widths_is_refused():
    with pytest.raises(ValueError, match="differ in width"):
        Grid(torch.zeros(5, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="does not fit"):
        Grid(torch.zeros(5, 3), torch.zeros(4, 3), torch.ones(4, 5))


def test_scores_are_what_their_formulas_say():
    features, weights, weight, _ = case(1)
    share = weights / weights.sum()
    moments = Moments.of(features, weights)
    rms = (share @ features.square()).sqrt()
    torch.testing.assert_close(magnitude([(features, weights)]), share @ features.abs())
    torch.testing.assert_close(magnitude((f, None) for f in features.split(9)), features.abs().mean(0))
    torch.testing.assert_close(activation(moments), rms)
    torch.testing.assert_close(effect(moments, consumer_gram(weight), absorbed=False), rms * weight.norm(dim=0))
    assert torch.equal(random(9, 4), random(9, 4)) and not torch.equal(random(9, 4), random(9, 5))


def test_ranking_puts_the_lower_index_first_among_equals():
    assert ranking(torch.tensor([1.0, 2.0, 1.0, 2.0, 2.0])).tolist() == [1, 3, 4, 0, 2]


@given(seeds, st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_least_squares_is_lstsq_on_the_rows(seed, count):
    features, weights, weight, bias = case(seed)
    keep = ranking(random(12, seed))[:count].sort().values
    found = least_squares(Moments.of(features, weights), weight, bias, keep, ridge=0.0)
    design = torch.cat([features[:, keep], torch.ones(80, 1, dtype=torch.float64)], 1) * weights.sqrt()[:, None]
    target = (features @ weight.T + bias) * weights.sqrt()[:, None]
    exact = torch.linalg.lstsq(design, target).solution
    torch.testing.assert_close(found.weight, exact[:-1].T, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.bias, exact[-1], rtol=1e-6, atol=1e-7)
    explicit = explicit_error(features, weights, weight, bias, keep, found.weight, found.bias)
    assert found.error == pytest.approx(explicit, rel=1e-6, abs=1e-12)


def test_least_squares_without_a_bias_regresses_about_zero():
    features, weights, weight, _ = case(3)
    keep = torch.arange(7)
    found = least_squares(Moments.of(features, weights), weight, None, keep, ridge=0.0)
    root = weights.sqrt()[:, None]
    exact = torch.linalg.lstsq(features[:, keep] * root, features @ weight.T * root).solution
    torch.testing.assert_close(found.weight, exact.T, rtol=1e-6, atol=1e-8)
    assert found.bias is None


@given(seeds, st.sampled_from([None, 4]))
@settings(max_examples=15, deadline=None)
def test_keeping_everything_changes_nothing(seed, rank):
    features, weights, weight, bias = case(seed, rank=rank)
    found = least_squares(Moments.of(features, weights), weight, bias, torch.arange(12))
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.bias, bias, rtol=0, atol=1e-10)
    assert found.error < 1e-20


def test_keeping_nothing_leaves_the_mean():
    features, weights, weight, bias = case(5)
    moments = Moments.of(features, weights)
    found = least_squares(moments, weight, bias, torch.tensor([], dtype=torch.long))
    assert found.weight.shape == (20, 0) and found.error == pytest.approx(1.0)
    torch.testing.assert_close(found.bias, bias + weight @ moments.mean)


@pytest.mark.parametrize("keep", [[0, 0], [-1], [12]])
def test_a_keep_that_is_no_set_of_coordinates_is_refused(keep):
    features, weights, weight, bias = case(5)
    with pytest.raises(ValueError, match="kept coordinates"):
        least_squares(Moments.of(features, weights), weight, bias, torch.tensor(keep))


@given(seeds, st.sampled_from([None, 3, 6]))
@settings(max_examples=20, deadline=None)
def test_error_falls_along_nested_supports_and_beats_plain_removal(seed, rank):
    features, weights, weight, bias = case(seed, rank=rank)
    moments = Moments.of(features, weights)
    order = ranking(effect(moments, consumer_gram(weight)))
    errors = [least_squares(moments, weight, bias, order[:n].sort().values).error for n in range(13)]
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))
    assert all(errors[n] <= unchanged(moments, weight, bias, order[:n].sort().values).error + 1e-9 for n in range(13))


def test_plain_removal_costs_what_the_rows_say():
    features, weights, weight, bias = case(8)
    keep = torch.tensor([1, 4, 5])
    found = unchanged(Moments.of(features, weights), weight, bias, keep)
    explicit = explicit_error(features, weights, weight, bias, keep, found.weight, found.bias)
    assert torch.equal(found.weight, weight[:, keep]) and found.error == pytest.approx(explicit)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_every_greedy_step_takes_the_best_coordinate(seed):
    features, weights, weight, bias = case(seed, width=8)
    moments = Moments.of(features, weights)
    found = greedy(moments.covariance, consumer_gram(weight))
    assert sorted(found.order.tolist()) == list(range(8))
    for n in range(8):
        kept = found.order[:n].tolist()
        errors = {
            j: least_squares(moments, weight, bias, torch.tensor([*kept, j]), ridge=0.0).error
            for j in range(8)
            if j not in kept
        }
        chosen = errors[int(found.order[n])]
        assert chosen <= min(errors.values()) + 1e-9
        assert float(found.error[n + 1]) == pytest.approx(chosen, rel=1e-6, abs=1e-9)


def test_row_importance_steers_the_choice():
    covariance = torch.eye(3, dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert greedy(covariance, consumer_gram(weight)).order.tolist() == [2, 1, 0]
    assert greedy(covariance, consumer_gram(weight, torch.tensor([100.0, 1, 1]))).order.tolist() == [0, 2, 1]


def test_what_never_varies_or_is_known_is_free():
    features, weights, weight, bias = case(2, width=6)
    features[:, 1] = 7.0
    features[:, 4] = features[:, 0] - 2 * features[:, 2]
    moments = Moments.of(features, weights)
    found = greedy(moments.covariance, consumer_gram(weight))
    assert 1 in found.order[4:].tolist()
    assert float(found.error[4]) < 1e-9
    assert least_squares(moments, weight, bias, found.keep(4), ridge=0.0).error < 1e-9


def test_greedy_stops_early_with_the_same_beginning():
    features, weights, weight, _ = case(9)
    covariance, gram = Moments.of(features, weights).covariance, consumer_gram(weight)
    whole, part = greedy(covariance, gram), greedy(covariance, gram, count=5)
    assert torch.equal(whole.order[:5], part.order[:5])
    assert sorted(part.order.tolist()) == list(range(12)) and torch.equal(whole.keep(5), part.keep(5))


def test_greedy_of_nothing_keeps_the_order():
    assert greedy(torch.zeros(3, 3), torch.eye(3)).order.tolist() == [0, 1, 2]


def test_split_undoes_stacking():
    parts = [(torch.randn(rows, 4), torch.randn(rows)) for rows in (6, 6, 2)]
    stacked = torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])
    for (weight, bias), (was, shift) in zip(split(*stacked, [6, 6, 2]), parts, strict=True):
        assert torch.equal(weight, was) and torch.equal(bias, shift)
    with pytest.raises(ValueError, match="cannot be split"):
        split(*stacked, [6, 6])
