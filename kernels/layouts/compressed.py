"""Compressed rows (CSR): build from sorted entries, transpose, and say where one is not valid."""

import torch
from torch import Tensor


def pointers(row: Tensor, rows: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Where each row's entries begin, and where the last ends: int64 [n] of row numbers → [rows + 1]."""
    ends = torch.bincount(row, minlength=rows).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).to(dtype)


def rows_of(ptr: Tensor) -> Tensor:
    """The row of every entry: [rows + 1] → int64 [n]."""
    rows = torch.arange(ptr.numel() - 1, device=ptr.device)
    return torch.repeat_interleave(rows, ptr.diff().to(torch.int64))


def transpose(ptr: Tensor, idx: Tensor, patterns: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same entries by column: ptr_t [patterns * columns + 1], idx_t (rows, sorted), and each one's place in `idx`.

    Rows and columns are numbered within their pattern, pointers run over all patterns. Stable: the order of entries is
    the same on every run, and so is the order of every sum taken along it.
    """
    rows = (ptr.numel() - 1) // patterns
    row = rows_of(ptr)
    pattern = torch.div(row, max(rows, 1), rounding_mode="floor")
    column = pattern * columns + idx
    order = torch.argsort(column, stable=True)
    within = (row - pattern * rows)[order].to(idx.dtype)
    return pointers(column, patterns * columns, ptr.dtype), within, order


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the tensor has this dtype and shape."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")


def check_ascending(name: str, row: Tensor, column: Tensor, rows: int, columns: int) -> None:
    """Raise ValueError unless entries (row over all patterns, column) ascend, each once, columns in range.

    `rows` is the rows of one pattern, to name the place by.
    """

    def refuse(wrong: Tensor, offset: int, what: str) -> None:
        if bool(wrong.any()):
            entry = int(wrong.nonzero()[0]) + offset
            pattern, within = divmod(int(row[entry]), max(rows, 1))
            place = f"{name} entry {entry} (pattern {pattern}, row {within}, column {int(column[entry])})"
            raise ValueError(f"{place} {what}")

    refuse((column < 0) | (column >= columns), 0, f"is out of range, there are {columns} columns")
    step = (row * max(columns, 1) + column).diff()
    refuse(step == 0, 1, "is a duplicate")
    refuse(step < 0, 1, "is unsorted")


def check_rows(name: str, ptr: Tensor, idx: Tensor, columns: int, patterns: int) -> None:
    """Raise ValueError unless pointers fit the entries and every row is sorted, unique and within its columns."""
    _check_pointers(name, ptr, idx.numel())
    check_ascending(name, rows_of(ptr), idx.long(), (ptr.numel() - 1) // patterns, columns)


def _check_pointers(name: str, ptr: Tensor, entries: int) -> None:
    first, last = int(ptr[0]), int(ptr[-1])
    if (first, last) != (0, entries):
        raise ValueError(f"{name}_ptr runs from {first} to {last}, expected 0 to {entries}")
    falls = ptr.diff() < 0
    if bool(falls.any()):
        raise ValueError(f"{name}_ptr falls after row {int(falls.nonzero()[0])}")


def check_transposed(name: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Raise ValueError unless a transposed index is the one that its rows have."""
    for part, ours, theirs in zip(("ptr_t", "idx_t", "map_t"), found, expected, strict=False):
        if not torch.equal(ours, theirs.to(ours.dtype)):
            raise ValueError(f"{name}_{part} is not the transpose of {name}_idx")
