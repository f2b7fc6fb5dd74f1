"""The cost model ranks layouts as the patterns that they were made for would have it."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery.kernels.layouts import Blocks, Edges
from surgery.kernels.layouts.ceilings import CEILINGS, ceilings
from surgery.kernels.layouts.cost import Pattern, choose

BLOCK = (128, 128)
ARCHITECTURES = list(CEILINGS)
DTYPES = ["fp32", "bf16"]


def random_pattern(size, density, dim, heads, dtype):
    """What independent edges give: no block of this size is empty, none is full."""
    blocks = (size // BLOCK[0]) * (size // BLOCK[1])
    return Pattern(size, size, heads, dim, dtype, size * size * density, 0, blocks, BLOCK)


sizes = st.sampled_from([2048, 4096, 8192, 32768])
dims = st.sampled_from([64, 128])
heads = st.sampled_from([8, 32])
dtypes = st.sampled_from(DTYPES)
architectures = st.sampled_from(ARCHITECTURES)


@given(sizes, dims, heads, dtypes, architectures)
@settings(max_examples=80, deadline=None)
def test_few_random_edges_are_edges(size, dim, count, dtype, arch):
    assert choose(random_pattern(size, 0.004, dim, count, dtype), arch).layout == "edge"


@given(sizes, dims, heads, architectures, st.sampled_from([0.05, 0.2, 0.5, 0.9]))
@settings(max_examples=80, deadline=None)
def test_many_random_edges_are_not(size, dim, count, arch, density):
    """On a GPU from 5 %. A core's edge kernel is a third as fast as its dense one, so there only from a half."""
    if arch == "cpu":
        density = max(density, 0.6)
    assert choose(random_pattern(size, density, dim, count, "bf16"), arch).layout in ("bitmask", "dense")


@given(sizes, dims, heads, dtypes, architectures)
@settings(max_examples=40, deadline=None)
def test_causal_and_block_diagonal_masks_are_blocks(size, dim, count, dtype, arch):
    causal = Pattern.of_blocks(Blocks.causal(size, size, BLOCK), count, dim, dtype)
    diagonal = Blocks.from_table(torch.eye(size // 128, dtype=torch.bool), size, size, BLOCK)
    assert choose(causal, arch).layout == "block"
    assert choose(Pattern.of_blocks(diagonal, count, dim, dtype), arch).layout == "block"


@given(st.integers(1, 9000), dims, heads, dtypes, architectures)
@settings(max_examples=40, deadline=None)
def test_everything_kept_is_dense(size, dim, count, dtype, arch):
    choice = choose(Pattern(size, size, count, dim, dtype, size * size, (size // 128) ** 2, 0, BLOCK), arch)
    assert choice.layout == "dense" and "every pair is kept" in choice.reason


@given(sizes, dims, heads, dtypes, architectures, st.floats(0, 0.99))
@settings(max_examples=80, deadline=None)
def test_candidates_are_ranked_and_the_reason_names_the_first(size, dim, count, dtype, arch, density):
    choice = choose(random_pattern(size, density, dim, count, dtype), arch)
    seconds = [cost.seconds for cost in choice.costs]
    assert seconds == sorted(seconds) and choice.layout == choice.costs[0].layout
    assert f"{choice.layout} takes" in choice.reason and ceilings(arch).source in choice.reason
    assert {cost.layout for cost in choice.costs} <= {"dense", "block", "bitmask", "edge"} and len(choice.costs) == 3


@given(sizes, dims, heads, dtypes, architectures, st.floats(0, 0.5), st.floats(1.1, 1.9))
@settings(max_examples=80, deadline=None)
def test_more_edges_never_cost_less(size, dim, count, dtype, arch, density, factor):
    few = {cost.layout: cost for cost in choose(random_pattern(size, density, dim, count, dtype), arch).costs}
    more = choose(random_pattern(size, density * factor, dim, count, dtype), arch).costs
    assert all(cost.seconds >= few[cost.layout].seconds for cost in more)


def test_the_break_even_of_edges_on_a_gpu():
    """At D = 128 in bf16 an edge moves 512 bytes: 8.4 G edges/s from 4.3 TB/s, 1.07 % of 400 TFLOP/s of tiles."""
    for density, layout in ((0.009, "edge"), (0.0125, "bitmask")):
        assert choose(random_pattern(32768, density, 128, 32, "bf16"), "sm90").layout == layout


@pytest.mark.parametrize("share", [0.004, 0.3, 1.0])
def test_edges_and_blocks_of_one_mask_have_the_same_numbers(share):
    torch.manual_seed(0)
    mask = torch.rand(2, 150, 200) < share
    mask[:, :32, 32:64] = True
    left = Pattern.of_blocks(Blocks.from_mask(mask, (32, 32)), 4, 64, "fp32")
    right = Pattern.of_edges(Edges.from_mask(mask), 4, 64, "fp32", (32, 32))
    assert left == right and left.density == pytest.approx(mask.float().mean().item())


def test_an_architecture_without_numbers_of_its_own():
    assert ceilings("gfx942") is CEILINGS["sm90"] and ceilings("interpreter") is CEILINGS["cpu"]
    pattern = random_pattern(2048, 0.1, 64, 8, "fp16")
    assert choose(pattern, "cpu").costs
    with pytest.raises(ValueError, match="no ceilings for fp64"):
        choose(dataclasses.replace(pattern, dtype="fp64"))


def test_nothing_kept_costs_only_the_call():
    empty = Blocks.from_mask(torch.zeros(256, 256, dtype=torch.bool), BLOCK)
    choice = choose(Pattern.of_blocks(empty, 8, 64, "fp32"))
    assert choice.layout == "edge" and choice.costs[0].flops == 0
