"""Layouts become one another, and FlexAttention's BlockMask, without losing a pair."""

import pytest
import torch
from surgery.kernels.layouts import Blocks, Edges
from surgery.kernels.layouts.convert import (
    bitmask_from_blocks,
    blocks_from_bitmask,
    blocks_from_edges,
    edges_from_blocks,
)
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention, noop_mask

SIZES = [(1, 1), (70, 101), (128, 128), (200, 64), (64, 0), (0, 5)]
SQUARES = [(16, 16), (64, 32), (128, 128)]


def same(left, right):
    assert (left.queries, left.keys, left.patterns) == (right.queries, right.keys, right.patterns)
    for ours, theirs in zip(left.tensors(), right.tensors(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def random_mask(patterns, queries, keys, share=0.3):
    torch.manual_seed(queries * 1000 + keys)
    mask = torch.rand(patterns, queries, keys) < share
    mask[:, queries // 3 : queries // 2] = False
    mask[-1, : 2 * queries // 3, : keys // 2] = True
    return mask


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", SQUARES)
@pytest.mark.parametrize("share", [0.0, 0.004, 0.3, 1.0])
def test_blocks_edges_and_bitmask_are_one_mask(size, block, share):
    mask = random_mask(2, *size, share) if 0 < share < 1 else torch.full((2, *size), bool(share))
    blocks, edges = Blocks.from_mask(mask, block), Edges.from_mask(mask)
    same(blocks_from_edges(edges, block).validate(), blocks)
    same(edges_from_blocks(blocks).validate(), edges)
    packed = bitmask_from_blocks(blocks)
    assert packed.shape == (2, size[0], -(-size[1] // 32)) and packed.dtype == torch.int32
    same(blocks_from_bitmask(packed, size[1], block).validate(), blocks)


def test_a_bitmask_past_its_keys_is_refused():
    with pytest.raises(ValueError, match="bits past its 33 keys"):
        blocks_from_bitmask(torch.full((1, 4, 2), 2, dtype=torch.int32), 33)
    with pytest.raises(ValueError, match=r"expected \[1, 4, 1\]"):
        blocks_from_bitmask(torch.zeros(1, 4, 2, dtype=torch.int32), 32)


def causal(b, h, q, k):
    return q >= k


def slanted(b, h, q, k):
    return (q + 7 * h + 50 * b >= k) & (k % (2 + h) != 1)


DOCUMENTS = torch.tensor([0] * 37 + [1] * 100 + [2] * 63)


def documents(b, h, q, k):
    return (DOCUMENTS[q] == DOCUMENTS[k]) & (q >= k)


MASKS = [
    (causal, 1, 1, 200, 200),
    (noop_mask, 1, 1, 130, 100),
    (noop_mask, 1, 1, 128, 128),
    (slanted, 1, 3, 200, 170),
    (slanted, 2, 3, 64, 300),
    (documents, 1, 1, 200, 200),
    (lambda b, h, q, k: q < 0, 1, 2, 64, 64),
]


@pytest.mark.parametrize("mask_mod, batch, heads, queries, keys", MASKS)
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_flex_block_masks_round_trip(mask_mod, batch, heads, queries, keys, block):
    theirs = create_block_mask(mask_mod, batch, heads, queries, keys, device="cpu", BLOCK_SIZE=block)
    dense = create_mask(mask_mod, batch, heads, queries, keys, device="cpu").flatten(0, 1)
    blocks = Blocks.from_block_mask(theirs).validate()
    same(blocks, Blocks.from_mask(dense, block))
    back = blocks.to_block_mask(heads)
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_indices", "full_q_indices"):
        assert torch.equal(getattr(back, name), getattr(theirs, name)), name
    assert (back.BLOCK_SIZE, back.seq_lengths) == (theirs.BLOCK_SIZE, theirs.seq_lengths)
    assert torch.equal(create_mask(back.mask_mod, batch, heads, queries, keys, device="cpu").flatten(0, 1), dense)
    same(Blocks.from_block_mask(back), blocks)


def test_only_partial_blocks_are_asked():
    """A mask_mod that contradicts its BlockMask: full blocks are kept and absent ones left out, whatever it says."""
    counts, indices = torch.tensor([[[1, 0]]], dtype=torch.int32), torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    full_counts, full_indices = counts.flip(2), indices.flip(2)
    odd = BlockMask.from_kv_blocks(
        counts,
        indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=(32, 32),
        mask_mod=lambda b, h, q, k: q == k - 32,
        seq_lengths=(64, 64),
    )
    mask = Blocks.from_block_mask(odd).validate().dense_mask()[0]
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[:32, 32:] = torch.eye(32).bool()
    expected[32:, 32:] = True
    assert torch.equal(mask, expected)


def test_full_blocks_over_the_edge_are_cut_and_partial_ones_that_are_full_become_so():
    block_mask = create_block_mask(noop_mask, 1, 1, 96, 96, device="cpu", BLOCK_SIZE=(32, 32))
    block_mask.seq_lengths = (80, 90)
    blocks = Blocks.from_block_mask(block_mask).validate()
    assert blocks.dense_mask().all() and (blocks.full_idx.numel(), blocks.part_idx.numel()) == (4, 5)
    all_partial = BlockMask.from_kv_blocks(
        torch.full((1, 1, 1), 1, dtype=torch.int32),
        torch.zeros(1, 1, 1, 1, dtype=torch.int32),
        BLOCK_SIZE=(32, 32),
        seq_lengths=(32, 32),
    )
    assert Blocks.from_block_mask(all_partial).part_idx.numel() == 0


def test_masks_by_batch_are_spread_over_heads():
    theirs = create_block_mask(slanted, 2, None, 70, 70, device="cpu", BLOCK_SIZE=(32, 32))
    with pytest.raises(ValueError, match="say how many heads"):
        Blocks.from_block_mask(theirs)
    blocks = Blocks.from_block_mask(theirs, heads=3).validate()
    dense = create_mask(slanted, 2, None, 70, 70, device="cpu")
    assert torch.equal(blocks.dense_mask(), dense.expand(2, 3, 70, 70).flatten(0, 1))
    with pytest.raises(ValueError, match="not a whole number of batches of 4 heads"):
        blocks.to_block_mask(4)


def test_flex_attention_takes_ours():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 16) for length in (70, 90, 90))
    mask = random_mask(2, 70, 90, 0.2)
    mask[:, :, 0] = True
    ours = Blocks.from_mask(mask, (32, 32)).to_block_mask()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=ours), expected)
