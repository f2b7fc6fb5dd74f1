"""Distilling the conditioning path: better than least squares, honest about its error, and repeatable."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from surgery.compensation import Conditioning, Grid, Moments, consumer_gram, greedy, least_squares, refit


def network(seed: int = 0, width: int = 16, steps: int = 24, classes: int = 5, out: int = 40):
    """A conditioning path with smooth hidden features, and consumers W [out, width], b [out]."""
    draw = torch.Generator().manual_seed(seed)
    hidden = F.silu(torch.linspace(-2, 2, steps)[:, None] * torch.randn(1, 12, generator=draw) + 0.3)
    path = Conditioning(
        hidden,
        torch.randn(width, 12, generator=draw) / 3,
        torch.randn(width, generator=draw) / 3,
        torch.randn(classes, width, generator=draw) / 2,
    )
    return path, torch.randn(out, width, generator=draw), torch.randn(out, generator=draw)


def support(path: Conditioning, weight, count: int):
    return greedy(Moments.gather(path.features()).covariance, consumer_gram(weight)).keep(count)


def outputs(path: Conditioning, weight, bias):
    """What the consumers compute at every (t, y), straight from the parts: [T, V, out]."""
    time = path.hidden.double() @ path.time_weight.double().T
    time = time if path.time_bias is None else time + path.time_bias.double()
    return F.silu(time[:, None] + path.table.double()) @ weight.double().T + bias.double()


def measured(path, weight, bias, found, importance=None):
    """Unexplained share of the consumers' weighted variance, from the outputs themselves."""
    wanted, got = outputs(path, weight, bias), outputs(found.conditioning, found.weight, found.bias)
    pairs = torch.ones(wanted.shape[:2]) if path.weight is None else path.weight
    share = (pairs.double() / pairs.sum())[..., None] * (1.0 if importance is None else importance.double())
    mean = (wanted * (pairs.double() / pairs.sum())[..., None]).sum((0, 1))
    return float((share * (wanted - got).square()).sum() / (share * (wanted - mean).square()).sum())


def test_the_parts_of_a_path_make_its_grid():
    path, _, _ = network()
    rows = torch.cat([c for c, _ in path.grid.rows(7)])
    direct = (path.time[:, None] + path.table.double()).flatten(0, 1)
    torch.testing.assert_close(rows, direct)
    features = torch.cat([s for s, _ in path.features(1000)])
    torch.testing.assert_close(features, F.silu(direct))
    assert isinstance(path.grid, Grid) and path.counted == len(path.grid) == 24 * 5


def test_a_narrowed_path_is_the_same_path_at_its_coordinates():
    path, _, _ = network()
    keep = torch.tensor([3, 4, 9])
    narrow = path.keep(keep)
    torch.testing.assert_close(narrow.time, path.time[:, keep])
    assert torch.equal(narrow.table, path.table[:, keep]) and narrow.width == 3


@pytest.mark.parametrize("count", [2, 4, 7])
def test_refit_is_closer_than_least_squares(count):
    path, weight, bias = network()
    keep = support(path, weight, count)
    found = refit(path, weight, bias, keep, iterations=100)
    start = least_squares(Moments.gather(path.features()), weight, bias, keep)
    assert found.before == pytest.approx(start.error)
    assert found.error < 0.9 * found.before
    assert found.error == pytest.approx(measured(path, weight, bias, found), rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_refit_finds_a_narrow_path_that_exists_from_the_wrong_coordinates(seed):
    path, weight, bias = network(seed)
    weight[:, 4:] = 0
    found = refit(path, weight, bias, torch.tensor([6, 7, 8, 9]), iterations=400)
    assert found.before > 1e-2 and found.error < 1e-2 * found.before


def test_refit_keeps_every_shape():
    path, weight, bias = network()
    found = refit(path, weight, bias, support(path, weight, 5), iterations=20)
    assert found.conditioning.time_weight.shape == (5, 12) and found.conditioning.time_bias.shape == (5,)
    assert found.conditioning.table.shape == (5, 5)
    assert found.weight.shape == (40, 5) and found.bias.shape == (40,)


def test_importance_of_rows_and_pairs_is_what_gets_minimised():
    path, weight, bias = network(1)
    importance = torch.cat([torch.full((20,), 100.0), torch.full((20,), 0.01)])
    pairs = torch.rand(24, 5, generator=torch.Generator().manual_seed(2))
    pairs[3:9] = 0
    weighted = Conditioning(path.hidden, path.time_weight, path.time_bias, path.table, pairs)
    keep = support(path, weight, 4)
    plain = refit(path, weight, bias, keep, iterations=100)
    found = refit(weighted, weight, bias, keep, importance=importance, iterations=100)
    assert found.error == pytest.approx(measured(weighted, weight, bias, found, importance), rel=1e-4)
    assert found.error < measured(weighted, weight, bias, plain, importance)


def test_a_sampled_grid_ends_near_the_whole_one():
    path, weight, bias = network(3)
    keep = support(path, weight, 4)
    whole = refit(path, weight, bias, keep, iterations=120)
    sampled = refit(path, weight, bias, keep, iterations=120, limit=60)
    assert whole.error <= sampled.error < sampled.before
    assert sampled.error == pytest.approx(measured(path, weight, bias, sampled), rel=1e-4)


def test_sampled_pairs_are_distinct_count_and_cover_every_class():
    path, _, _ = network()
    counts = torch.ones(24, 5)
    counts[:, 2] = 0
    counts[:20, 4] = 0
    path = Conditioning(path.hidden, path.time_weight, path.time_bias, path.table, counts)
    times, classes = path.pairs(40, torch.Generator().manual_seed(0))
    assert len(set(zip(times.tolist(), classes.tolist(), strict=True))) == len(times) <= 40
    assert bool((counts[times, classes] > 0).all())
    assert classes.bincount().tolist() == [8, 8, 0, 8, 4]
    everything = path.pairs(1000, torch.Generator().manual_seed(0))
    assert len(everything[0]) == path.counted == 24 * 3 + 4


def test_no_iterations_is_least_squares():
    path, weight, bias = network()
    keep = support(path, weight, 4)
    found = refit(path, weight, bias, keep, iterations=0)
    start = least_squares(Moments.gather(path.features()), weight, bias, keep)
    assert found.error == found.before == start.error
    assert torch.equal(found.weight, start.weight) and torch.equal(found.conditioning.table, path.table[:, keep])


def test_keeping_everything_is_never_made_worse():
    path, weight, bias = network()
    found = refit(path, weight, bias, torch.arange(16), iterations=20)
    assert found.error <= found.before < 1e-20


def test_the_same_seed_gives_the_same_bits():
    path, weight, bias = network()
    keep = support(path, weight, 3)
    first, second = (refit(path, weight, bias, keep, iterations=40, limit=50, seed=7) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.conditioning.table, second.conditioning.table)


def test_time_and_progress():
    path, weight, bias = network()
    keep = support(path, weight, 3)
    seen = []
    refit(path, weight, bias, keep, iterations=50, progress=lambda *news: seen.append(news))
    assert [step for step, _ in seen] == [20, 40, 50]
    assert all(after <= before for (_, before), (_, after) in pairwise(seen))
    assert refit(path, weight, bias, keep, seconds=0.0).error == refit(path, weight, bias, keep, iterations=0).error


def test_a_path_without_a_time_bias_stays_without():
    path, weight, bias = network()
    path = Conditioning(path.hidden, path.time_weight, None, path.table)
    found = refit(path, weight, bias, support(path, weight, 4), iterations=60)
    assert found.conditioning.time_bias is None and found.error < 0.9 * found.before
    assert found.error == pytest.approx(measured(path, weight, bias, found), rel=1e-4)
