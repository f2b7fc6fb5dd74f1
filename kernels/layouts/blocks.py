"""Sorted block-sparse rows: which blocks of queries × keys are kept whole, which in part, and the same transposed."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from surgery.kernels.layouts import bits, intervals
from surgery.kernels.layouts.blocks_checks import check_block, check_table, validate
from surgery.kernels.layouts.compressed import check_ascending, pointers, rows_of, transpose
from torch import Tensor

BLOCK = (128, 128)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of BM queries × BN keys, R = ceil(queries / BM) rows of C = ceil(keys / BN), for `patterns` masks.

    patterns is 1 (all heads share), Hq, or B * Hq (row-major). Pointers run over all patterns; indices are sorted and
    unique within a row. Bit j of word w of a row of `part_bits` is key column 32 * w + j of the block. A block that
    reaches over the edge of queries × keys is always partial, its bits past the edge 0.

    full_ptr [M*R+1], full_idx [F]        blocks kept whole (int32, as all tensors here)
    part_ptr [M*R+1], part_idx [P]        blocks kept in part
    part_bits [P, BM, ceil(BN/32)]        which pairs of them
    full_ptr_t [M*C+1], full_idx_t [F]    per key block, the query blocks
    part_ptr_t [M*C+1], part_idx_t [P], part_map_t [P]   the same of partial ones, and each one's place in part_bits

    Making one checks dtypes and shapes; `validate` checks every entry.
    """

    queries: int
    keys: int
    block: tuple[int, int]
    patterns: int
    full_ptr: Tensor
    full_idx: Tensor
    part_ptr: Tensor
    part_idx: Tensor
    part_bits: Tensor
    full_ptr_t: Tensor
    full_idx_t: Tensor
    part_ptr_t: Tensor
    part_idx_t: Tensor
    part_map_t: Tensor

    def __post_init__(self) -> None:
        check_block(self)

    @classmethod
    def from_entries(
        cls,
        queries: int,
        keys: int,
        block: tuple[int, int],
        patterns: int,
        full: tuple[Tensor, Tensor],
        part: tuple[Tensor, Tensor],
        part_bits: Tensor,
    ) -> "Blocks":
        """From (row, column) of every block, int64, rows numbered pattern * R + r, in ascending order.

        Raises ValueError naming the first entry that is out of range, a duplicate or unsorted.
        """
        rows, columns = _grid(queries, keys, block)
        for name, (row, column) in (("full", full), ("part", part)):
            check_ascending(name, row, column, rows, columns)
        full_ptr, part_ptr = (pointers(row, patterns * rows) for row, _ in (full, part))
        full_idx, part_idx = (column.to(torch.int32) for _, column in (full, part))
        full_ptr_t, full_idx_t, _ = transpose(full_ptr, full_idx, patterns, columns)
        part_ptr_t, part_idx_t, map_t = transpose(part_ptr, part_idx, patterns, columns)
        index = (full_ptr, full_idx, part_ptr, part_idx, part_bits.contiguous(), full_ptr_t, full_idx_t)
        return cls(queries, keys, tuple(block), patterns, *index, part_ptr_t, part_idx_t, map_t.to(torch.int32))

    @classmethod
    def from_mask(cls, mask: Tensor, block: tuple[int, int] = BLOCK) -> "Blocks":
        """From bool [queries, keys] or [M, queries, keys]; True is kept. Blocks with nothing kept are left out."""
        if mask.dtype != torch.bool or mask.dim() not in (2, 3):
            raise ValueError(f"a mask is bool [queries, keys] or [M, queries, keys], not {mask.dtype} {[*mask.shape]}")
        masks = mask if mask.dim() == 3 else mask.unsqueeze(0)
        patterns, queries, keys = masks.shape
        rows, columns = _grid(queries, keys, block)
        short = (0, columns * block[1] - keys, 0, rows * block[0] - queries)
        whole = torch.nn.functional.pad(masks, short) if any(short) else masks
        tiles = bits.pack(whole.reshape(patterns, rows, block[0], columns, block[1]))
        return cls.from_tiles(tiles, queries, keys, block)

    @classmethod
    def from_tiles(cls, tiles: Tensor, queries: int, keys: int, block: tuple[int, int]) -> "Blocks":
        """From packed masks of all blocks, int32 [M, R, BM, C, words(BN)], 0 past the edges."""
        patterns, rows = tiles.shape[:2]
        whole = bits.pack(torch.ones(block[1], dtype=torch.bool, device=tiles.device))
        some = (tiles != 0).any(4).any(2)
        full = (tiles == whole).all(4).all(2)
        pattern, row, column = (some & ~full).nonzero(as_tuple=True)
        return cls.from_entries(
            queries,
            keys,
            block,
            patterns,
            _entries(full),
            (pattern * rows + row, column),
            tiles[pattern, row, :, column],
        )

    @classmethod
    def from_table(
        cls, keep: Tensor, queries: int, keys: int, block: tuple[int, int], causal: bool = False
    ) -> "Blocks":
        """From which blocks to keep, bool [M, R, C] or [R, C]; with causal, of them what is not ahead of its query."""
        tables = keep if keep.dim() == 3 else keep.unsqueeze(0)
        check_table(tables, _grid(queries, keys, block))
        make = intervals.causal if causal else intervals.everything
        return cls.from_intervals(make(queries, keys, keep.device), block, tables)

    @classmethod
    def from_intervals(
        cls, runs: intervals.Intervals, block: tuple[int, int] = BLOCK, keep: Tensor | None = None
    ) -> "Blocks":
        """From one run of keys per query, and optionally which blocks to keep of that, bool [M, R, C]."""
        some, full = runs.tables(block)
        if keep is not None:
            some, full = some & keep, full & keep
        patterns, rows, _ = some.shape
        pattern, row, column = (some & ~full).nonzero(as_tuple=True)
        own = pattern if runs.low.shape[0] > 1 else torch.zeros_like(pattern)
        part_bits = runs.bits(block, own, row, column)
        part = (pattern * rows + row, column)
        return cls.from_entries(runs.low.shape[1], runs.keys, block, patterns, _entries(full), part, part_bits)

    @classmethod
    def causal(cls, queries: int, keys: int, block: tuple[int, int] = BLOCK) -> "Blocks":
        """Query i sees key j iff j <= i + keys - queries."""
        return cls.from_intervals(intervals.causal(queries, keys), block)

    @classmethod
    def window(cls, queries: int, keys: int, left: int, right: int = 0, block: tuple[int, int] = BLOCK) -> "Blocks":
        """Query i sees keys i + keys - queries - left … i + keys - queries + right."""
        return cls.from_intervals(intervals.window(queries, keys, left, right), block)

    @classmethod
    def segments(
        cls,
        query_offsets: Tensor | Sequence[int],
        key_offsets: Tensor | Sequence[int],
        block: tuple[int, int] = BLOCK,
        causal: bool = False,
    ) -> "Blocks":
        """Sequences packed end to end: a query sees the keys of its own. Offsets as [0, …, total], lengths may be 0."""
        offsets = (torch.as_tensor(each).to(torch.int64) for each in (query_offsets, key_offsets))
        return cls.from_intervals(intervals.segments(*offsets, causal), block)

    @classmethod
    def from_block_mask(cls, block_mask: object, heads: int | None = None) -> "Blocks":
        """From FlexAttention's BlockMask: see `flex.from_block_mask`."""
        from surgery.kernels.layouts.flex import from_block_mask

        return from_block_mask(block_mask, heads)

    def to_block_mask(self, heads: int | None = None) -> object:
        """As FlexAttention's BlockMask: see `flex.to_block_mask`."""
        from surgery.kernels.layouts.flex import to_block_mask

        return to_block_mask(self, heads)

    @property
    def grid(self) -> tuple[int, int]:
        """R query blocks and C key blocks."""
        return _grid(self.queries, self.keys, self.block)

    @property
    def kept(self) -> int:
        """How many pairs of query and key are kept, in all patterns."""
        return self.full_idx.numel() * self.block[0] * self.block[1] + int(bits.count(self.part_bits).sum())

    @property
    def density(self) -> float:
        """The share of pairs kept, 0..1."""
        return self.kept / max(self.patterns * self.queries * self.keys, 1)

    def tensors(self) -> list[Tensor]:
        """What operators take as `Tensor[] layout`, in the order of the fields."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)[4:]]

    def to(self, device: torch.device | str) -> "Blocks":
        """The same on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)[4:]}
        return dataclasses.replace(self, **moved)

    def validate(self) -> "Blocks":
        """Itself, if every entry is valid; raises ValueError that names the first place where it is not."""
        validate(self)
        return self

    def dense_mask(self) -> Tensor:
        """bool [M, queries, keys]: for tests and small sizes."""
        rows, columns = self.grid
        height, width = self.block
        mask = torch.zeros(self.patterns * rows, columns, height, width, dtype=torch.bool, device=self.full_idx.device)
        mask[rows_of(self.full_ptr), self.full_idx.long()] = True
        mask[rows_of(self.part_ptr), self.part_idx.long()] = bits.unpack(self.part_bits, width)
        tiles = mask.view(self.patterns, rows, columns, height, width).transpose(2, 3)
        return tiles.reshape(self.patterns, rows * height, columns * width)[:, : self.queries, : self.keys]


def _grid(queries: int, keys: int, block: tuple[int, int]) -> tuple[int, int]:
    return -(-queries // block[0]), -(-keys // block[1])


def _entries(table: Tensor) -> tuple[Tensor, Tensor]:
    """(row over all patterns, column) of what is True in bool [M, R, C]."""
    return table.flatten(0, 1).nonzero(as_tuple=True)
