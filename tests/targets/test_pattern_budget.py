"""How a budget of blocks is spent: on the most attention per block, never over, in common or alone."""

import numpy
import pytest
import torch
from surgery.targets.attention_mass import blocked
from surgery.targets.pattern_budget import Head, at_random, rules_of, spend

FORMS = ("sink", "window", "vertical", "slash", "blocks")
SIZE = 8


def head(*, causal=True, seed=0, **heavy):
    """Attention spread thin, but for what is named: columns and distances (in blocks behind the query), or single blocks."""
    mass = numpy.random.default_rng(seed).random((SIZE, SIZE)) * 1e-3
    apart = numpy.arange(SIZE)[:, None] - numpy.arange(SIZE)
    for column in heavy.get("columns", ()):
        mass[:, column] += 1
    for distance in heavy.get("distances", ()):
        mass[apart == distance] += 1
    for row, column in heavy.get("blocks", ()):
        mass[row, column] += 1
    return Head(mass * (apart >= 0) if causal else mass, causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "forms, heavy, budget",
    [
        (("sink",), {"columns": [0]}, 15),
        (("vertical",), {"columns": [3]}, 15),
        (("window",), {"distances": [1]}, 23),
        (("slash",), {"distances": [2]}, 14),
        (("blocks",), {"blocks": [(5, 1), (7, 3)]}, 10),
    ],
)
def test_the_form_that_holds_attention_is_found(forms, heavy, budget, causal):
    one = head(causal=causal, **heavy)
    spend([one], budget, forms)
    assert one.kept.sum() <= budget and one.kept.diagonal().all()
    heaviest = one.mass > 0.5
    assert one.kept[heaviest].all()


@pytest.mark.parametrize("causal", [True, False])
def test_rules_keep_what_the_heads_keep(causal):
    heads = [head(causal=causal, seed=seed, columns=[seed], distances=[seed + 1]) for seed in range(3)]
    spend(heads, 60, FORMS)
    kept = torch.from_numpy(numpy.stack([one.kept for one in heads])).repeat_interleave(4, 1).repeat_interleave(4, 2)
    seen = kept.tril() if causal else kept
    assert torch.equal(rules_of(heads, 4).mask(4 * SIZE, 4 * SIZE, causal), seen)


def test_heads_in_common_keep_more_than_each_alone():
    def pair():
        return [head(columns=[0, 2, 4]), head(seed=1)]

    common, alone = pair(), pair()
    spend(common, 40, ("vertical",))
    for one in alone:
        spend([one], 20, ("vertical",))
    held = [sum(float(one.mass[one.kept].sum()) for one in heads) for heads in (common, alone)]
    assert held[0] > held[1] and common[0].kept.sum() > common[1].kept.sum()
    assert sum(one.kept.sum() for one in common) <= 40


def test_random_blocks_fill_the_budget_and_repeat():
    first, again = ([head(), head(causal=False)] for _ in range(2))
    at_random(first, 50, seed=3)
    at_random(again, 50, seed=3)
    assert all((one.kept == other.kept).all() for one, other in zip(first, again, strict=True))
    assert sum(int(one.kept.sum()) for one in first) == 50
    assert not numpy.triu(first[0].kept, 1).any()


def test_sums_of_blocks_are_those_of_the_whole():
    weights = torch.rand(2, 10, 10)
    whole = blocked(weights, 4)
    assert whole.shape == (2, 3, 3)
    torch.testing.assert_close(whole[:, 1, 2], weights[:, 4:8, 8:].sum((1, 2)))
    parts = blocked(weights[:, :5], 4) + blocked(weights[:, 5:], 4, start=5)[:, :2]
    torch.testing.assert_close(parts, whole[:, :2])
