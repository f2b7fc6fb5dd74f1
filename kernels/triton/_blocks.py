"""What the kernels of block attention share on the host: which tile serves a block, their arguments, what to compile."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.triton._common import checks_columns, padded_dim
from surgery.kernels.tuning import Config, architecture, pick, shipped
from torch import Tensor

TABLE = "block_attention"
SOURCE = "block_attention_{}"
LARGEST_DIM = 256
# Query rows × key columns, best first: the first that divides a block's sides serves it.
CLASSES = {
    "forward": ((128, 64), (64, 64), (32, 32), (16, 16)),
    "dq": ((128, 64), (64, 64), (32, 32), (16, 16)),
    "dkv": ((64, 128), (64, 64), (32, 32), (16, 16)),
}


def tile_class(kernel: str, block: tuple[int, int]) -> str:
    """The class of tile, as tables name it, that serves blocks of this size: `dq 64x64`."""
    fits = ((rows, columns) for rows, columns in CLASSES[kernel] if not (block[0] % rows or block[1] % columns))
    rows, columns = next(fits)
    return f"{kernel} {rows}x{columns}"


def config(kernel: str, q: Tensor, block: tuple[int, int]) -> Config:
    """The shipped row for these tensors. Raises LookupError if there is none."""
    return pick(TABLE, architecture(q.device), q.dtype, q.shape[-1], tile_class(kernel, block))


def refuse_triton(q: Tensor, block: tuple[int, int]) -> str | None:
    """Why the Triton kernels cannot take this call, or None."""
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {q.dtype}"
    if q.shape[-1] > LARGEST_DIM:
        return f"head dim {q.shape[-1]} is over {LARGEST_DIM}"
    if any(side < 16 or side & (side - 1) for side in block):
        return f"blocks of {block[0]}x{block[1]}: sides have to be powers of two from 16"
    kernels = (kernel for kernel in CLASSES if not has_row(kernel, q, block))
    missing = next(kernels, None)
    return missing and f"no tuned row for {missing}, {q.dtype}, head dim {q.shape[-1]}, {architecture(q.device)}"


def has_row(kernel: str, q: Tensor, block: tuple[int, int]) -> bool:
    """Whether a row is shipped for these tensors."""
    try:
        config(kernel, q, block)
    except LookupError:
        return False
    return True


@dataclass(frozen=True)
class Grid:
    """Numbers that every kernel here takes, from the shapes of a call."""

    batch: int
    heads: int
    group: int  # query heads to a key head
    patterns: int
    block_rows: int
    block_columns: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, layout: Sequence[Tensor], block: tuple[int, int]) -> "Grid":
        rows, columns = -(-q.shape[2] // block[0]), -(-k.shape[2] // block[1])
        patterns = (layout[0].numel() - 1) // max(rows, 1)
        return cls(q.shape[0], q.shape[1], q.shape[1] // k.shape[1], patterns, rows, columns)

    @property
    def pattern_strides(self) -> tuple[int, int]:
        """Steps from one batch and one head to the next one's pattern."""
        if self.patterns == 1:
            return 0, 0
        return (0, 1) if self.patterns == self.heads else (self.heads, 1)


def words_of(block: tuple[int, int]) -> int:
    """32-bit words in a row of a partial block."""
    return -(-block[1] // 32)


def variants(kernel: str, arch: str) -> Iterator[tuple[Config, bool]]:
    """The shipped rows, each with a head dim that is padded and, where that is another kernel, with one that is not."""
    seen = set()
    for row in shipped(TABLE, arch):
        shape = (row.dtype, row.dim, *sorted(row.blocks.items()), row.num_warps, row.num_stages)
        if row.tile.startswith(f"{kernel} ") and shape not in seen:
            seen.add(shape)
            yield from ((row, checks) for checks in sorted({checks_columns(row, row.dim), True}))


def compilation(kernel: str, pointers: str, numbers: str, row: Config, checks: bool, wide: str) -> Compilation:
    """One compilation: `pointers` and `numbers` as `name:type` words in the kernel's order, `wide` the MMA's long side."""
    element = "*bf16" if row.dtype == "bf16" else "*fp32"
    types = [word.split(":") for word in f"{pointers} {numbers}".split()]
    signature = {name: element if kind == "*" else kind for name, kind in types}
    constants = {**row.blocks, "DIM": padded_dim(row.dim), "CHECKED": checks}
    strides = ("_batch", "_head", "_row")
    aligned = tuple(name for name, kind in signature.items() if kind[0] == "*" or name.endswith((*strides, "dim")))
    tensor_cores = row.dtype == "bf16"
    expects: Mapping[str, Any] = {"gfx942": ("mfma",)} if tensor_cores else {}
    if tensor_cores and row.blocks[wide] >= 64:
        expects = {**expects, "sm90": ("wgmma",)}
    return Compilation(
        kernel=f"{SOURCE.format(kernel)}:{kernel}",
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=aligned,
        options=row.options,
        expects=expects,
        label=f"{row.dtype} D={row.dim}{' checked' if checks else ''} {row.tile}",
    )
