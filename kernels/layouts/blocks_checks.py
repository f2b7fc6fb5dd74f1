"""What makes a `Blocks` valid, and where one is not."""

from typing import TYPE_CHECKING

import torch
from surgery.kernels.layouts import bits
from surgery.kernels.layouts.compressed import check_rows, check_tensor, check_transposed, rows_of, transpose
from torch import Tensor

if TYPE_CHECKING:
    from surgery.kernels.layouts.blocks import Blocks

SIZES = (16, 32, 64, 128)


def check_block(blocks: "Blocks") -> None:
    """Raise ValueError unless sizes, dtypes and shapes agree: what can be told without reading a tensor."""
    if blocks.queries < 0 or blocks.keys < 0 or blocks.patterns < 1:
        raise ValueError(f"{blocks.patterns} patterns of {blocks.queries} queries × {blocks.keys} keys")
    if len(blocks.block) != 2 or any(size not in SIZES for size in blocks.block):
        raise ValueError(f"block {blocks.block}: each side must be one of {SIZES}")
    rows, columns = blocks.grid
    full, part = blocks.full_idx.numel(), blocks.part_idx.numel()
    by_row, by_column = (blocks.patterns * rows + 1,), (blocks.patterns * columns + 1,)
    shapes = {
        "full_ptr": by_row,
        "full_idx": (full,),
        "part_ptr": by_row,
        "part_idx": (part,),
        "part_bits": (part, blocks.block[0], bits.words(blocks.block[1])),
        "full_ptr_t": by_column,
        "full_idx_t": (full,),
        "part_ptr_t": by_column,
        "part_idx_t": (part,),
        "part_map_t": (part,),
    }
    for name, shape in shapes.items():
        check_tensor(name, getattr(blocks, name), torch.int32, shape)


def check_table(keep: Tensor, grid: tuple[int, int]) -> None:
    """Raise ValueError unless this is a bool table of blocks [M, R, C]."""
    if keep.dtype != torch.bool or keep.dim() != 3 or tuple(keep.shape[1:]) != grid:
        raise ValueError(f"a table is bool [M, {grid[0]}, {grid[1]}] here, not {keep.dtype} {list(keep.shape)}")


def validate(blocks: "Blocks") -> None:
    """Raise ValueError at the first entry that is out of range, unsorted, a duplicate, or at odds with another."""
    rows, columns = blocks.grid
    for name in ("full", "part"):
        ptr, idx = getattr(blocks, f"{name}_ptr"), getattr(blocks, f"{name}_idx")
        check_rows(name, ptr, idx, columns, blocks.patterns)
        found = [getattr(blocks, f"{name}_{each}") for each in ("ptr_t", "idx_t")]
        if name == "part":
            found.append(blocks.part_map_t)
        check_transposed(name, tuple(found), transpose(ptr, idx, blocks.patterns, columns))
    _check_once(blocks, columns)
    _check_edges(blocks, rows, columns)


def _check_once(blocks: "Blocks", columns: int) -> None:
    """No block is both full and partial."""
    full, part = (rows_of(ptr) * columns + idx for ptr, idx in _lists(blocks))
    both = torch.isin(part, full)
    if bool(both.any()):
        row, column = divmod(int(part[both][0]), columns)
        rows = blocks.grid[0]
        raise ValueError(f"block ({row % rows}, {column}) of pattern {row // rows} is both full and partial")


def _check_edges(blocks: "Blocks", rows: int, columns: int) -> None:
    """A full block lies within queries × keys; bits past them are 0."""
    height, width = blocks.block
    (full_ptr, full_idx), (part_ptr, part_idx) = _lists(blocks)
    below = (rows_of(full_ptr) % max(rows, 1) + 1) * height > blocks.queries
    beside = (full_idx + 1) * width > blocks.keys
    over = below | beside
    if bool(over.any()):
        raise ValueError(f"full_idx: entry {int(over.nonzero()[0])} reaches over the edge, it has to be partial")
    left = blocks.queries - (rows_of(part_ptr) % max(rows, 1)) * height
    outside = torch.arange(height, device=left.device) >= left.unsqueeze(1)
    stop = torch.where(outside, 0, (blocks.keys - part_idx.long() * width).unsqueeze(1))
    inside = bits.interval(torch.zeros_like(stop), stop, width)
    stray = (blocks.part_bits & ~inside).flatten(1).any(1)
    if bool(stray.any()):
        raise ValueError(f"part_bits: block {int(stray.nonzero()[0])} has bits past the edge")


def _lists(blocks: "Blocks") -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (blocks.full_ptr, blocks.full_idx), (blocks.part_ptr, blocks.part_idx)
