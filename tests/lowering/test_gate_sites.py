"""The gate at real operators: what it takes is among what it measured, and was not slower."""

import pytest
import torch
from surgery.kernels.layouts import Blocks
from surgery.kernels.operators import BlockWeight, FeedForward

from surgery.lowering.crossover import Crossover
from surgery.lowering.sites import (
    choose_attention,
    choose_feed_forward,
    choose_linear,
    choose_modulation,
    dense_attention,
)


def attention(keep: float):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 512, 32) for heads in (4, 2, 2))
    table = torch.rand(8, 8) < keep
    return q, k, v, Blocks.from_table(table.fill_diagonal_(True), 512, 512, (64, 64), causal=True)


def ffn(kept: int):
    torch.manual_seed(0)
    weights = FeedForward(torch.randn(1024, 128), torch.randn(128, 1024), activation="relu")
    return torch.randn(1, 128), weights, torch.arange(kept, dtype=torch.int32)


def layer(share: float):
    torch.manual_seed(0)
    return torch.randn(4, 512), BlockWeight.from_dense(torch.randn(512, 512), (64, 64), share)


def blocks_of_modulation(width: int):
    torch.manual_seed(0)
    return torch.randn(8, width), [torch.randn(192, width) for _ in range(3)], [torch.randn(192) for _ in range(3)]


CASES = [
    (choose_attention, attention(0.1), {"block", "edge"}),
    (choose_attention, attention(1.0), {"block", "edge"}),
    (choose_feed_forward, ffn(1), {"gathered"}),
    (choose_feed_forward, ffn(16), {"gathered"}),
    (choose_linear, layer(0.05), {"block"}),
    (choose_linear, layer(1.0), {"block"}),
    (choose_modulation, blocks_of_modulation(43), {"hoisted", "packed"}),
]


@pytest.mark.parametrize("ask, given, able", CASES)
def test_takes_what_measured_faster_or_stays_dense(ask, given, able):
    decision = ask(*given, crossover=Crossover(None, "here"), budget_s=0.3)
    measured = decision.milliseconds
    assert {"dense"} < set(measured) <= {"dense", *able}
    assert decision.chosen in measured
    assert measured[decision.chosen] <= 1.2 * measured["dense"]  # medians; the choice itself compares round by round
    assert decision.sparse == (decision.chosen != "dense")


def test_causal_attention_is_compared_with_the_causal_flag():
    """The dense way of a causal pattern is the fast one, not one with a mask of S × S."""
    q, k, v, _ = attention(1.0)
    causal, other = Blocks.causal(512, 512, (64, 64)), Blocks.window(512, 512, 100, block=(64, 64))
    for blocks in (causal, other):
        masked = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=blocks.dense_mask().reshape(1, 1, 512, 512), enable_gqa=True
        )
        torch.testing.assert_close(dense_attention(q, k, v, blocks)(), masked)
