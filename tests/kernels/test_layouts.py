"""Blocks and edges: every constructor against its dense mask, sizes that do not divide, and what is refused."""

import dataclasses
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery.kernels.layouts import Blocks, Edges, bits

SIZES = [(1, 1), (70, 101), (128, 128), (64, 0), (0, 5), (200, 64), (64, 200), (33, 1)]
SQUARES = [(16, 16), (32, 32), (64, 32), (16, 128), (128, 128)]


def positions(queries, keys):
    """[queries, 1] the key each query is at, ends aligned, and [1, keys]."""
    return torch.arange(queries).unsqueeze(1) + keys - queries, torch.arange(keys).unsqueeze(0)


def same(left, right):
    assert [getattr(left, each) for each in ("queries", "keys", "patterns")] == [
        getattr(right, each) for each in ("queries", "keys", "patterns")
    ]
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
def test_masks_come_back(size, block, device):
    mask = random_mask(3, *size).to(device)
    blocks = Blocks.from_mask(mask, block).validate()
    assert torch.equal(blocks.dense_mask(), mask)
    assert blocks.kept == int(mask.sum())
    assert blocks.density == pytest.approx(mask.float().mean().item() if mask.numel() else 0.0)
    edges = Edges.from_mask(mask).validate()
    assert torch.equal(edges.dense_mask(), mask) and edges.density == pytest.approx(blocks.density)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", SQUARES)
def test_causal_and_windows(size, block):
    own, key = positions(*size)
    assert torch.equal(Blocks.causal(*size, block).validate().dense_mask()[0], key <= own)
    for left, right in ((0, 0), (20, 3), (1000, 0)):
        window = Blocks.window(*size, left, right, block).validate().dense_mask()[0]
        assert torch.equal(window, (key >= own - left) & (key <= own + right))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_tables(size, causal):
    own, key = positions(*size)
    for height, width in SQUARES:
        torch.manual_seed(0)
        keep = torch.rand(2, -(-size[0] // height), -(-size[1] // width)) < 0.5
        expected = keep.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, : size[0], : size[1]]
        expected = expected & (key <= own) if causal else expected
        blocks = Blocks.from_table(keep, *size, (height, width), causal).validate()
        assert torch.equal(blocks.dense_mask(), expected)
        same(blocks, Blocks.from_mask(expected, (height, width)))


@pytest.mark.parametrize("causal", [False, True])
def test_segments_of_any_length(causal):
    query_offsets, key_offsets = [0, 0, 10, 10, 90, 100], [0, 5, 5, 40, 140, 141]
    expected = torch.zeros(100, 141, dtype=torch.bool)
    for segment in range(5):
        rows, columns = (slice(*each[segment : segment + 2]) for each in (query_offsets, key_offsets))
        own, key = positions(rows.stop - rows.start, columns.stop - columns.start)
        expected[rows, columns] = key <= own if causal else True
    for block in SQUARES:
        blocks = Blocks.segments(query_offsets, torch.tensor(key_offsets), block, causal=causal).validate()
        assert torch.equal(blocks.dense_mask()[0], expected)


def test_a_block_at_the_edge_is_partial():
    blocks = Blocks.from_table(torch.ones(2, 3, dtype=torch.bool), 40, 96, (32, 32)).validate()
    assert (blocks.full_idx.numel(), blocks.part_idx.numel()) == (3, 3)
    assert Blocks.from_table(torch.ones(2, 3, dtype=torch.bool), 64, 96, (32, 32)).part_idx.numel() == 0


def test_no_blocks_at_all():
    empty = Blocks.from_mask(torch.zeros(2, 50, 60, dtype=torch.bool), (32, 32)).validate()
    assert empty.kept == 0 and empty.part_bits.shape == (0, 32, 1) and empty.full_ptr.tolist() == [0] * 5
    assert Edges.from_mask(torch.zeros(2, 50, 60, dtype=torch.bool)).validate().ptr_t.tolist() == [0] * 121


def test_transposed_lists_are_sorted():
    blocks = Blocks.from_mask(random_mask(2, 128, 160, 0.004), (16, 32))
    for kind in ("full", "part"):
        ptr, idx = getattr(blocks, f"{kind}_ptr_t").tolist(), getattr(blocks, f"{kind}_idx_t").tolist()
        for start, stop in zip(ptr, ptr[1:], strict=False):
            assert idx[start:stop] == sorted(set(idx[start:stop]))
    moved = blocks.part_idx[blocks.part_map_t.long()].tolist()
    columns = [column % 5 for column, n in enumerate(blocks.part_ptr_t.diff().tolist()) for _ in range(n)]
    assert moved == columns


def test_long_sequences_are_built_from_tables_of_blocks(monkeypatch):
    begun = time.process_time()
    blocks = Blocks.causal(65536, 65536)
    assert time.process_time() - begun < 1
    assert blocks.full_idx.numel() == 512 * 511 // 2 and blocks.part_idx.numel() == 512
    assert blocks.density == pytest.approx(0.5 + 0.5 / 65536)


def test_moving_keeps_every_entry(device):
    mask = random_mask(2, 70, 90)
    for layout in (Blocks.from_mask(mask, (32, 32)), Edges.from_mask(mask)):
        moved = layout.to(device)
        assert all(each.device.type == torch.device(device).type for each in moved.tensors())
        same(layout, moved.to("cpu"))


DAMAGE = {
    "full_idx out of range": ("full_idx", lambda t: t + 9, "full entry 0 .* out of range, there are 4 columns"),
    "full_idx duplicate": ("full_idx", lambda t: t.clamp(max=1), "full entry 2 .*row 0, column 1.* duplicate"),
    "full_idx unsorted": ("full_idx", lambda t: t.flip(0), "full entry 1 .* unsorted"),
    "full_idx dtype": ("full_idx", lambda t: t.long(), "full_idx is torch.int64, expected torch.int32"),
    "full_ptr end": ("full_ptr", lambda t: t + 1, "full_ptr runs from 1 to"),
    "full_ptr falls": ("full_ptr", lambda t: t[[0, 3, 1, 2, 4]], "full_ptr falls after row 1"),
    "full_ptr length": ("full_ptr", lambda t: t[:-1], r"full_ptr has shape \[4\], expected \[5\]"),
    "transposed": ("full_idx_t", lambda t: t.roll(1), "full_idx_t is not the transpose of full_idx"),
    "transposed bits": ("part_map_t", lambda t: t.roll(1), "part_map_t is not the transpose of part_idx"),
    "bits past the edge": ("part_bits", lambda t: t | -1, "part_bits: block 3 has bits past the edge"),
    "bits dtype": ("part_bits", lambda t: t.long(), "part_bits is torch.int64"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_blocks_are_refused(damage):
    mask = torch.ones(120, 128, dtype=torch.bool)
    mask[::32, 32] = False
    blocks = Blocks.from_mask(mask, (32, 32)).validate()
    name, change, message = DAMAGE[damage]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(blocks, **{name: change(getattr(blocks, name))}).validate()


def test_a_block_is_not_both_full_and_partial():
    full = torch.tensor([0, 0]), torch.tensor([0, 1])
    part = torch.tensor([0]), torch.tensor([1])
    packed = torch.ones(1, 32, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"block \(0, 1\) of pattern 0 is both full and partial"):
        Blocks.from_entries(32, 64, (32, 32), 1, full, part, packed).validate()
    blocks = Blocks.from_table(torch.ones(1, 1, dtype=torch.bool), 32, 32, (32, 32))
    with pytest.raises(ValueError, match="full_idx: entry 0 reaches over the edge"):
        dataclasses.replace(blocks, queries=31).validate()


REFUSED = {
    "block size": (lambda: Blocks.causal(8, 8, (48, 32)), r"block \(48, 32\): each side must be one of"),
    "mask dtype": (lambda: Blocks.from_mask(torch.ones(8, 8)), "a mask is bool"),
    "mask dims": (lambda: Edges.from_mask(torch.ones(8, dtype=torch.bool)), "a mask is bool"),
    "table shape": (
        lambda: Blocks.from_table(torch.ones(2, 2, dtype=torch.bool), 64, 96, (32, 32)),
        r"a table is bool \[M, 2, 3\] here",
    ),
    "window": (lambda: Blocks.window(8, 8, -1), "left=-1 and right=0"),
    "offsets start": (lambda: Blocks.segments([1, 4], [0, 4]), "query_offsets begins at 1"),
    "offsets fall": (lambda: Blocks.segments([0, 4], [0, 4, 2]), "key_offsets falls after segment 1"),
    "offsets count": (lambda: Blocks.segments([0, 4], [0, 4, 6]), "1 query segments but 2 key segments"),
    "entries unsorted": (
        lambda: Blocks.from_entries(
            64, 32, (32, 32), 1, *[(torch.tensor([1, 0]), torch.tensor([0, 0]))] * 2, torch.zeros(2, 32, 1).int()
        ),
        "full entry 1 .* is unsorted",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make()


PAIRS = {
    "duplicate": ([0, 0, 0], [0, 1, 1], [2, 2, 2], r"edges entry 2 \(pattern 0, row 1, column 2\) is a duplicate"),
    "unsorted": ([0, 0, 0], [0, 1, 1], [2, 2, 0], r"edges entry 2 \(pattern 0, row 1, column 0\) is unsorted"),
    "key": ([0, 0], [0, 1], [2, 3], "key 3 of edge 1 is out of range, there are 3"),
    "query": ([0, 0], [-1, 1], [2, 2], "query -1 of edge 0 is out of range, there are 4"),
    "pattern": ([0, 2], [0, 1], [2, 2], "pattern 2 of edge 1 is out of range, there are 2"),
    "length": ([0, 1], [0], [2, 2], "pattern, query and key have shapes"),
}


@pytest.mark.parametrize("what", PAIRS)
def test_wrong_edges_are_refused(what):
    *pairs, message = PAIRS[what]
    with pytest.raises(ValueError, match=message):
        Edges.from_pairs(*map(torch.tensor, pairs), queries=4, keys=3, patterns=2)


def test_duplicates_are_refused_even_when_sorting():
    pairs = torch.tensor([0, 0, 0]), torch.tensor([3, 1, 3]), torch.tensor([0, 2, 0])
    with pytest.raises(ValueError, match="row 3, column 0\\) is a duplicate"):
        Edges.from_pairs(*pairs, queries=4, keys=3, sort=True)


def test_unsorted_edges_can_be_sorted():
    mask = random_mask(2, 20, 30)
    pairs = mask.nonzero()[torch.randperm(int(mask.sum()))].unbind(1)
    same(Edges.from_pairs(*pairs, queries=20, keys=30, patterns=2, sort=True), Edges.from_mask(mask))


def test_damaged_edges_are_refused():
    edges = Edges.from_mask(random_mask(1, 9, 9))
    with pytest.raises(ValueError, match="edges_map_t is not the transpose"):
        dataclasses.replace(edges, map_t=edges.map_t.roll(1)).validate()
    with pytest.raises(ValueError, match="ptr is torch.int32, expected torch.int64"):
        dataclasses.replace(edges, ptr=edges.ptr.int())
    with pytest.raises(ValueError, match="edges entry .* is out of range"):
        dataclasses.replace(edges, idx=edges.idx + 9).validate()


@given(columns=st.integers(0, 100), rows=st.integers(0, 4), seed=st.integers(0, 99), share=st.sampled_from([0, 0.5, 1]))
@settings(max_examples=60, deadline=None)
def test_bits_come_back(columns, rows, seed, share):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    packed = bits.pack(mask)
    assert packed.shape == (rows, -(-columns // 32)) and packed.dtype == torch.int32
    assert torch.equal(bits.unpack(packed, columns), mask)
    assert torch.equal(bits.count(packed).sum(-1), mask.sum(-1))
    for column in range(columns):
        assert torch.equal((packed[:, column // 32] >> (column % 32)) & 1 == 1, mask[:, column])


@given(start=st.integers(-40, 140), stop=st.integers(-40, 140), columns=st.sampled_from([16, 32, 100, 128]))
def test_bits_of_a_run(start, stop, columns):
    place = torch.arange(columns)
    expected = bits.pack((place >= start) & (place < stop))
    assert torch.equal(bits.interval(torch.tensor(start), torch.tensor(stop), columns), expected)
