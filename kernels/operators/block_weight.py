"""A block-sparse weight: which blocks are kept, their values, and the same by column, for the gradient of the input."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from surgery.kernels.layouts.compressed import check_rows, check_tensor, check_transposed, pointers, rows_of, transpose
from torch import Tensor
from torch.nn.functional import pad

SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """W [outputs, inputs] in sorted BCSR of blocks (height, width), R = ceil(outputs / height) rows of C columns.

    values [n, height, width]             the kept blocks, row by row; 0 past the edges of W
    ptr [R + 1], idx [n]                  where each row's blocks begin, and their columns, ascending (int32)
    ptr_t [C + 1], idx_t [n], map_t [n]   the same by column: the blocks' rows, ascending, and their places in values

    Making one checks dtypes and shapes; `validate` checks every entry.
    """

    outputs: int
    inputs: int
    values: Tensor
    ptr: Tensor
    idx: Tensor
    ptr_t: Tensor
    idx_t: Tensor
    map_t: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 3 or any(size not in SIZES for size in self.block):
            raise ValueError(f"values are [n, height, width], sides of {SIZES}, got {list(self.values.shape)}")
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"a weight of {self.outputs} × {self.inputs} has nothing to cut into blocks")
        rows, columns = self.grid
        kept = self.values.shape[0]
        shapes = {"ptr": rows + 1, "idx": kept, "ptr_t": columns + 1, "idx_t": kept, "map_t": kept}
        for name, size in shapes.items():
            check_tensor(name, getattr(self, name), torch.int32, (size,))

    @classmethod
    def from_blocks(cls, values: Tensor, ptr: Tensor, idx: Tensor, outputs: int, inputs: int) -> "BlockWeight":
        """From values, pointers and columns. Raises ValueError for an index that is not sorted, unique and in range."""
        columns = -(-inputs // values.shape[-1])
        ptr, idx = ptr.to(torch.int32), idx.to(torch.int32)
        check_rows("block", ptr, idx, columns, 1)
        by_column = (each.to(torch.int32) for each in transpose(ptr, idx, 1, columns))
        return cls(outputs, inputs, values, ptr, idx, *by_column)

    @classmethod
    def from_dense(
        cls, weight: Tensor, block: tuple[int, int] = (64, 64), keep: Tensor | float | None = None
    ) -> "BlockWeight":
        """Cut a dense W [outputs, inputs] into blocks and keep some.

        keep    bool [R, C]: these; a share of 0 to 1: the blocks of the largest norm, that share of them, rounded;
                None: those that hold anything but zeros
        Raises ValueError for a block side that is not 16, 32, 64 or 128, and for a mask or share that does not fit.
        """
        if weight.dim() != 2 or not weight.dtype.is_floating_point:
            raise ValueError(f"a weight is [outputs, inputs] of floats, got {weight.dtype} {list(weight.shape)}")
        if len(block) != 2 or any(size not in SIZES for size in block):
            raise ValueError(f"block {block}: each side must be one of {SIZES}")
        blocks = in_blocks(weight.detach(), block)
        mask = chosen(blocks, keep)
        row, column = mask.nonzero(as_tuple=True)
        ptr = pointers(row, mask.shape[0])
        return cls.from_blocks(blocks[row, column].contiguous(), ptr, column, *weight.shape)

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.outputs // self.block[0]), -(-self.inputs // self.block[1])

    @property
    def density(self) -> float:
        """The share of blocks that are kept."""
        return self.values.shape[0] / max(1, math.prod(self.grid))

    def tensors(self) -> list[Tensor]:
        """The index as operators take it: ptr, idx, ptr_t, idx_t, map_t."""
        return [self.ptr, self.idx, self.ptr_t, self.idx_t, self.map_t]

    def dense(self) -> Tensor:
        """W as a dense tensor, zeros where no block is kept; differentiable in the values."""
        (rows, columns), (height, width) = self.grid, self.block
        whole = self.values.new_zeros(rows * columns, height, width)
        place = rows_of(self.ptr) * columns + self.idx
        whole = whole.index_copy(0, place, self.values)
        flat = whole.view(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
        return flat[: self.outputs, : self.inputs]

    def to(self, *args, **kwargs) -> "BlockWeight":
        """To a device, or the values to a dtype, as `Tensor.to`."""
        values = self.values.to(*args, **kwargs)
        index = {name: getattr(self, name).to(values.device) for name in ("ptr", "idx", "ptr_t", "idx_t", "map_t")}
        return dataclasses.replace(self, values=values, **index)

    def validate(self) -> None:
        """Raise ValueError at the first entry that is out of range, unsorted, a duplicate, or at odds with another."""
        rows, columns = self.grid
        check_rows("block", self.ptr, self.idx, columns, 1)
        found = (self.ptr_t, self.idx_t, self.map_t)
        check_transposed("block", found, transpose(self.ptr, self.idx, 1, columns))
        edge = self.values[self.idx == columns - 1, :, self.inputs - (columns - 1) * self.block[1] :]
        last = self.values[rows_of(self.ptr) == rows - 1, self.outputs - (rows - 1) * self.block[0] :]
        if bool(edge.any()) or bool(last.any()):
            raise ValueError(f"values past the edges of {self.outputs} × {self.inputs} must be 0")


def in_blocks(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """[outputs, inputs] → [R, C, height, width], zeros past the edges."""
    height, width = block
    whole = pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
    return whole.view(whole.shape[0] // height, height, whole.shape[1] // width, width).transpose(1, 2)


def chosen(blocks: Tensor, keep: Tensor | float | None) -> Tensor:
    """Which blocks to keep, bool [R, C]."""
    if keep is None:
        return (blocks != 0).any(-1).any(-1)
    if not isinstance(keep, Tensor):
        return _largest(blocks, float(keep))
    if keep.dtype != torch.bool or keep.shape != blocks.shape[:2]:
        raise ValueError(f"keep is bool {list(blocks.shape[:2])} here, got {keep.dtype} {list(keep.shape)}")
    return keep.to(blocks.device)


def _largest(blocks: Tensor, share: float) -> Tensor:
    """The blocks of the largest Frobenius norm; of equals, the first."""
    if not 0 <= share <= 1:
        raise ValueError(f"a share of blocks is from 0 to 1, got {share}")
    norms = blocks.double().square().sum((-1, -2)).flatten()
    order = torch.argsort(norms, descending=True, stable=True)[: round(share * norms.numel())]
    return torch.zeros_like(norms, dtype=torch.bool).index_fill(0, order, True).view(blocks.shape[:2])
