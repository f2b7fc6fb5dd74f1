import math

import pytest
import torch

from surgery.analyses import geometry

GAUSSIAN = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
ONE_HOT = torch.eye(8)[3]

PARTICIPATION = [
    ("iid Gaussian", GAUSSIAN, 2 / math.pi, 0.01),
    ("one-hot", ONE_HOT, 1 / 8, 1e-12),
    ("constant", torch.full((8,), -2.5), 1.0, 1e-12),
    ("scale does not matter", 1e-6 * GAUSSIAN, 2 / math.pi, 0.01),
    ("half of the coordinates", torch.tensor([1.0, -1.0, 0.0, 0.0]), 0.5, 1e-12),
    ("zero", torch.zeros(5), 0.0, 0.0),
]


@pytest.mark.parametrize(("what", "vectors", "expected", "tolerance"), PARTICIPATION, ids=[p[0] for p in PARTICIPATION])
def test_normalised_participation_ratio(what, vectors, expected, tolerance):
    measured = geometry.normalised_participation_ratio(vectors).mean().item()
    assert measured == pytest.approx(expected, abs=tolerance)


def test_participation_ratio_counts_coordinates():
    assert geometry.participation_ratio(torch.tensor([3.0, -3.0, 3.0, 0.0])).item() == pytest.approx(3.0)


VECTORS = torch.tensor([[0.1, -0.2, 0.3, 0.4]])
TAIL = [(0.05, 0.0, 1.0), (0.25, 0.5, 0.5), (0.35, 0.75, 0.25), (1.0, 1.0, 0.0)]


@pytest.mark.parametrize(("threshold", "tail", "head"), TAIL)
def test_tail_and_head_share(threshold, tail, head):
    at = torch.tensor([threshold])
    assert geometry.tail_share(VECTORS, at).item() == tail
    assert geometry.head_share(VECTORS, at).item() == head


def test_a_coordinate_at_the_threshold_is_in_neither():
    vectors, at = torch.tensor([[0.5, 1.0, 2.0, 4.0]]), torch.tensor([1.0])
    assert geometry.tail_share(vectors, at).item() == 0.25
    assert geometry.head_share(vectors, at).item() == 0.5


def test_pairwise_cosine():
    cosine = geometry.pairwise_cosine(torch.tensor([[1.0, 0.0], [2.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]))
    half = math.sqrt(0.5)
    expected = torch.tensor(
        [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]], dtype=torch.float64
    )
    assert torch.allclose(cosine, expected, atol=1e-12)


def test_mean_cosine_is_the_mean_of_the_matrix():
    vectors = GAUSSIAN[:20, :30] + 1
    direct = geometry.off_diagonal(geometry.pairwise_cosine(vectors)).mean().item()
    assert geometry.mean_cosine(vectors) == pytest.approx(direct, abs=1e-12)


# orthonormal classes of length r, a time vector of length R: (R, r, whether t is orthogonal to all of them)
PREDICTION = [(7.75, 0.98, True), (1.0, 1.0, True), (5.0, 0.2, False), (0.0, 1.0, True)]


@pytest.mark.parametrize(("length", "own", "orthogonal"), PREDICTION)
def test_predicted_cosine_is_exact_for_equal_norms_and_projections(length, own, orthogonal):
    classes = own * torch.eye(6, 7, dtype=torch.float64)
    direction = torch.eye(7, dtype=torch.float64)[6] if orthogonal else torch.ones(7, dtype=torch.float64) / 7**0.5
    time = length * direction
    measured = geometry.off_diagonal(geometry.pairwise_cosine(time + classes)).mean().item()
    assert geometry.predicted_cosine(time, classes) == pytest.approx(measured, abs=1e-12)


def test_published_check_of_the_prediction():
    """‖t‖ = 7.75 and ‖y‖ = 0.98, orthogonal: .984."""
    value = geometry.predicted_cosine(7.75 * torch.eye(7)[6], 0.98 * torch.eye(6, 7))
    assert value == pytest.approx(0.984, abs=5e-4)


CORRELATION = [
    ("monotone", [1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0], 1.0),
    ("reversed", [1.0, 2.0, 3.0], [9.0, 5.0, 1.0], -1.0),
    ("constant", [1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 0.0),
    ("ties take average ranks", [1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 0.9486832980505138),
]


@pytest.mark.parametrize(("what", "left", "right", "expected"), CORRELATION, ids=[c[0] for c in CORRELATION])
def test_rank_correlation(what, left, right, expected):
    assert geometry.rank_correlation(torch.tensor(left), torch.tensor(right)) == pytest.approx(expected, abs=1e-12)
