"""From one layout to another: edges, blocks, and whole rows of bits. Each is exact, and none makes queries × keys bytes."""

import torch
from surgery.kernels.layouts import bits
from surgery.kernels.layouts.blocks import BLOCK, Blocks
from surgery.kernels.layouts.compressed import check_tensor, rows_of
from surgery.kernels.layouts.edges import Edges
from torch import Tensor


def blocks_from_edges(edges: Edges, block: tuple[int, int] = BLOCK) -> Blocks:
    """The blocks that hold the edges: 4 * BM * words(BN) bytes for each one that has any."""
    height, width = block
    rows, columns = -(-edges.queries // height), -(-edges.keys // width)
    row, key = rows_of(edges.ptr), edges.idx.long()
    pattern = torch.div(row, max(edges.queries, 1), rounding_mode="floor")
    query = row - pattern * edges.queries
    place = (pattern * rows + query // height) * columns + key // width
    found, entry, held = torch.unique(place, return_inverse=True, return_counts=True)
    word = (entry * height + query % height) * bits.words(width) + key % width // bits.WORD
    packed = torch.zeros(len(found) * height * bits.words(width), dtype=torch.int32, device=key.device)
    # Each edge has a bit of its own, so adding is setting.
    packed.index_add_(0, word, (1 << key % width % bits.WORD).to(torch.int32))
    full = held == height * width
    at = found // max(columns, 1), found % max(columns, 1)
    whole, part = (tuple(each[which] for each in at) for which in (full, ~full))
    part_bits = packed.view(-1, height, bits.words(width))[~full]
    return Blocks.from_entries(edges.queries, edges.keys, block, edges.patterns, whole, part, part_bits)


def edges_from_blocks(blocks: Blocks) -> Edges:
    """Every pair that the blocks keep, one by one."""
    device = blocks.full_idx.device
    height, width = blocks.block
    inside = torch.ones(height, width, dtype=torch.bool, device=device).expand(blocks.full_idx.numel(), -1, -1)
    lists = (
        (blocks.full_ptr, blocks.full_idx, inside),
        (blocks.part_ptr, blocks.part_idx, bits.unpack(blocks.part_bits, width)),
    )
    pattern, query, key = zip(*(_pairs(blocks, *each) for each in lists), strict=True)
    sizes = {"queries": blocks.queries, "keys": blocks.keys, "patterns": blocks.patterns}
    return Edges.from_pairs(torch.cat(pattern), torch.cat(query), torch.cat(key), **sizes, sort=True)


def _pairs(blocks: Blocks, ptr: Tensor, idx: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(pattern, query, key) of every True of bool [n, BM, BN], the masks of these blocks."""
    entry, down, across = mask.nonzero(as_tuple=True)
    row, rows = rows_of(ptr)[entry], max(blocks.grid[0], 1)
    return row // rows, row % rows * blocks.block[0] + down, idx.long()[entry] * blocks.block[1] + across


def bitmask_from_blocks(blocks: Blocks) -> Tensor:
    """int32 [M, queries, words(keys)]: one bit for each pair."""
    rows, columns = blocks.grid
    height, width = blocks.block
    device = blocks.full_idx.device
    if not blocks.queries * blocks.keys:
        return torch.zeros(blocks.patterns, blocks.queries, bits.words(blocks.keys), dtype=torch.int32, device=device)
    tiles = torch.zeros(blocks.patterns * rows, columns, height, bits.words(width), dtype=torch.int32, device=device)
    whole = bits.pack(torch.ones(width, dtype=torch.bool, device=device))
    tiles[rows_of(blocks.full_ptr), blocks.full_idx.long()] = whole
    tiles[rows_of(blocks.part_ptr), blocks.part_idx.long()] = blocks.part_bits
    # A block narrower than a word fills only the first bytes of it.
    octets = tiles.transpose(1, 2).contiguous().view(torch.uint8)[..., : width // 8]
    lines = octets.reshape(blocks.patterns, rows * height, columns * width // 8)[:, : blocks.queries]
    size = bits.words(blocks.keys) * 4
    kept = torch.nn.functional.pad(lines, (0, max(size - lines.shape[2], 0)))[..., :size]
    return kept.contiguous().view(torch.int32)


def blocks_from_bitmask(packed: Tensor, keys: int, block: tuple[int, int] = BLOCK) -> Blocks:
    """From one bit for each pair, int32 [M, queries, words(keys)], bits past `keys` 0."""
    if packed.dim() != 3:
        raise ValueError(f"a bitmask is int32 [M, queries, words], not {list(packed.shape)}")
    patterns, queries, size = packed.shape
    check_tensor("bitmask", packed, torch.int32, (patterns, queries, bits.words(keys)))
    if not packed.numel():
        return Blocks.from_mask(torch.zeros(patterns, queries, keys, dtype=torch.bool, device=packed.device), block)
    past = packed[..., -1:] & ~bits.pack(torch.ones(keys, dtype=torch.bool, device=packed.device))[-1:]
    if bool(past.any()):
        raise ValueError(f"the bitmask has bits past its {keys} keys")
    height, width = block
    rows, columns = -(-queries // height), -(-keys // width)
    octets = packed.contiguous().view(torch.uint8)
    room = (0, columns * width // 8 - 4 * size, 0, rows * height - queries)
    octets = torch.nn.functional.pad(octets, room).reshape(patterns, rows, height, columns, width // 8)
    octets = torch.nn.functional.pad(octets, (0, 4 * bits.words(width) - width // 8))
    return Blocks.from_tiles(octets.contiguous().view(torch.int32), queries, keys, block)
