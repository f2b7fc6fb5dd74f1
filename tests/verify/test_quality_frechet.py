"""The Fréchet distance against what is known of it in closed form."""

import pytest
import torch

from surgery.verify.frechet import Gaussian, frechet_distance


def gaussian(mean, covariance):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (([0.0], [[1.0]]), ([3.0], [[1.0]]), 9.0),
        (([0.0], [[4.0]]), ([0.0], [[1.0]]), 1.0),
        (([1.0], [[9.0]]), ([3.0], [[4.0]]), 5.0),
        (([0.0, 0.0], [[4.0, 0.0], [0.0, 1.0]]), ([1.0, 2.0], [[1.0, 0.0], [0.0, 9.0]]), 10.0),
        (([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]), ([0.0, 0.0], [[2.0, 1.0], [1.0, 3.0]]), 5.0),
    ],
)
def test_closed_form(a, b, distance):
    assert frechet_distance(gaussian(*a), gaussian(*b)) == pytest.approx(distance, abs=1e-12)
    assert frechet_distance(gaussian(*b), gaussian(*a)) == pytest.approx(distance, abs=1e-12)


def test_commuting_covariances_turn_with_the_axes():
    """With shared eigenvectors the distance is the sum of (sqrt a_i - sqrt b_i)^2, however the axes are turned."""
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = torch.arange(1.0, 7.0, dtype=torch.float64), torch.arange(9.0, 3.0, -1, dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    distance = frechet_distance(Gaussian(zero, turn * a @ turn.T), Gaussian(zero, turn * b @ turn.T))
    assert distance == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), abs=1e-9)


@pytest.mark.parametrize("count", [3, 20, 500])
def test_a_set_is_at_no_distance_from_itself(count):
    """Also where fewer samples than features make the covariance singular."""
    features = 10 * torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(Gaussian.of(features), Gaussian.of(features.clone())) < 1e-6


def test_a_fit_finds_mean_and_covariance():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    fit = Gaussian.of(features)
    assert fit.mean.tolist() == [1.0, 2.0]
    assert fit.covariance.flatten().tolist() == pytest.approx([4 / 3, 0.0, 0.0, 16 / 3])
    assert fit.mean.dtype == fit.covariance.dtype == torch.float64


def test_samples_approach_the_distance_of_what_they_were_drawn_from():
    chance = torch.Generator().manual_seed(2)
    a = torch.randn(20_000, 4, generator=chance)
    b = 2 * torch.randn(20_000, 4, generator=chance) + 1
    assert frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(4 + 4, rel=0.05)


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="N >= 2"):
        Gaussian.of(torch.zeros(1, 4))
