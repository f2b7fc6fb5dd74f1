"""To and from FlexAttention's BlockMask, exactly."""

from collections.abc import Callable

import torch
from surgery.kernels.layouts import bits
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.layouts.compressed import rows_of
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
PAIRS_AT_ONCE = 1 << 24
NOTHING, WHOLE = -1, -2


def from_block_mask(block_mask: BlockMask, heads: int | None = None) -> Blocks:
    """The mask of a BlockMask [B, H, queries, keys], its mask_mod read on partial blocks only.

    A partial block that turns out to be kept whole or not at all becomes full or is left out. `heads`: query heads, needed
    where B > 1 shares one mask among heads. Raises ValueError for that, and for block sizes that `Blocks` has not.
    """
    batch, own_heads = block_mask.kv_num_blocks.shape[:2]
    spread = _spread(batch, own_heads, heads)
    queries, keys = block_mask.seq_lengths
    partial = _table(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _table(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    # FlexAttention may have a block over the edge as full: it cuts it there itself.
    inner = torch.zeros_like(full)
    inner[..., : queries // block_mask.BLOCK_SIZE[0], : keys // block_mask.BLOCK_SIZE[1]] = True
    cut = full & ~inner
    place = (partial | cut).nonzero()
    masks = _read(block_mask, place, cut[tuple(place.T)])
    return _assemble(full & inner, place, masks, spread, (queries, keys), tuple(block_mask.BLOCK_SIZE))


def to_block_mask(blocks: Blocks, heads: int | None = None) -> BlockMask:
    """As a BlockMask [B, H, …] whose mask_mod reads the packed bits. `heads`: how many of the patterns are heads.

    One pattern is shared by everything; several are the heads of one batch unless `heads` says that they are fewer.
    """
    heads = heads or blocks.patterns
    if blocks.patterns % heads:
        raise ValueError(f"{blocks.patterns} patterns are not a whole number of batches of {heads} heads")
    shape = (blocks.patterns // heads, heads, *blocks.grid)
    table = torch.full((blocks.patterns * blocks.grid[0], blocks.grid[1]), NOTHING, device=blocks.full_idx.device)
    table[rows_of(blocks.full_ptr), blocks.full_idx.long()] = WHOLE
    part = rows_of(blocks.part_ptr), blocks.part_idx.long()
    table[part] = torch.arange(len(part[0]), device=table.device)
    return BlockMask.from_kv_blocks(
        *_lists((table >= 0).view(shape)),
        *_lists((table == WHOLE).view(shape)),
        BLOCK_SIZE=blocks.block,
        mask_mod=_mask_mod(table.view(shape), blocks),
        seq_lengths=(blocks.queries, blocks.keys),
    )


def _spread(batch: int, own: int, heads: int | None) -> int:
    """How many patterns each mask of a batch becomes."""
    if batch == 1 or own > 1:
        if heads is not None and own not in (1, heads):
            raise ValueError(f"the BlockMask has {own} heads, not {heads}")
        return 1
    if heads is None:
        raise ValueError(
            f"the BlockMask has a mask for each of {batch} batches but not for each head: say how many heads"
        )
    return heads


def _table(counts: Tensor, indices: Tensor) -> Tensor:
    """bool [B, H, R, C] of padded lists of columns: only the first `counts` of a row are listed."""
    columns = indices.shape[-1]
    listed = torch.arange(columns, device=indices.device) < counts.unsqueeze(-1)
    spare = torch.where(listed, indices, columns).long()
    table = torch.zeros(*indices.shape[:-1], columns + 1, dtype=torch.bool, device=indices.device)
    return table.scatter_(-1, spare, True)[..., :columns]


def _lists(table: Tensor) -> tuple[Tensor, Tensor]:
    """(counts, indices) of bool [B, H, R, C], as FlexAttention pads them: the columns not listed come after."""
    order = torch.argsort(table.to(torch.int32), dim=-1, descending=True, stable=True)
    return table.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _read(block_mask: BlockMask, place: Tensor, cut: Tensor) -> Tensor:
    """The packed masks of blocks at place [P, (batch, head, row, column)]; of those cut, all but what is past the edge."""
    height, width = block_mask.BLOCK_SIZE
    read = [torch.zeros(0, height, bits.words(width), dtype=torch.int32, device=place.device)]
    step = max(PAIRS_AT_ONCE // (height * width), 1)
    for some, whole in zip(place.split(step), cut.split(step), strict=True):
        if len(some):
            mask = create_mask(_placed(block_mask, some, whole), len(some), 1, height, width, place.device)
            read.append(bits.pack(mask.squeeze(1)))
    return torch.cat(read)


def _placed(block_mask: BlockMask, place: Tensor, cut: Tensor) -> MaskMod:
    """The mask of a list of blocks, as a mask_mod whose batch is the place in the list."""
    height, width = block_mask.BLOCK_SIZE
    queries, keys = block_mask.seq_lengths
    batch, head, row, column = place.unbind(1)

    def mask_mod(entry: Tensor, _: Tensor, down: Tensor, across: Tensor) -> Tensor:
        query, key = row[entry] * height + down, column[entry] * width + across
        inside = (query < queries) & (key < keys)
        # What is past the edge is not asked of the mask: it may look positions up in a table.
        asked = torch.where(inside, query, 0), torch.where(inside, key, 0)
        return inside & (cut[entry] | block_mask.mask_mod(batch[entry], head[entry], *asked))

    return mask_mod


def _assemble(
    full: Tensor, place: Tensor, masks: Tensor, spread: int, size: tuple[int, int], block: tuple[int, int]
) -> Blocks:
    whole = bits.pack(torch.ones(block[1], dtype=torch.bool, device=masks.device))
    is_whole, is_some = (masks == whole).flatten(1).all(1), (masks != 0).flatten(1).any(1)
    full[tuple(place[is_whole].T)] = True
    part = torch.full(full.shape, NOTHING, device=full.device)
    kept = is_some & ~is_whole
    part[tuple(place[kept].T)] = kept.nonzero().squeeze(1)
    full, part = (each.flatten(0, 1).repeat_interleave(spread, 0) for each in (full, part))
    patterns = full.shape[0]
    full, part = full.flatten(0, 1), part.flatten(0, 1)
    at = (part != NOTHING).nonzero(as_tuple=True)
    return Blocks.from_entries(*size, block, patterns, full.nonzero(as_tuple=True), at, masks[part[at]])


def _mask_mod(table: Tensor, blocks: Blocks) -> MaskMod:
    height, width = blocks.block
    packed = blocks.part_bits
    shared = blocks.patterns == 1
    if not packed.numel():
        packed = packed.new_zeros(1, height, bits.words(width))

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        alone = table.shape[0] == 1
        entry = table[0 if alone else batch, 0 if shared else head, query // height, key // width]
        word = packed[entry.clamp(min=0), query % height, key % width // bits.WORD]
        return (entry == WHOLE) | ((entry >= 0) & ((word >> (key % bits.WORD)) & 1 == 1))

    return mask_mod
