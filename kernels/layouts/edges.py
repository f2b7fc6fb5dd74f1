"""Single edges, compressed by query, and the same by key."""

import dataclasses
from dataclasses import dataclass

import torch
from surgery.kernels.layouts.compressed import (
    check_ascending,
    check_rows,
    check_tensor,
    check_transposed,
    pointers,
    rows_of,
    transpose,
)
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Edges:
    """Which keys each query sees, one by one, for `patterns` masks: 1 (all heads share), Hq, or B * Hq (row-major).

    ptr int64 [M*queries+1], idx int32 [E]     the keys of each query, sorted and unique
    ptr_t int64 [M*keys+1], idx_t int32 [E]    the queries of each key, sorted
    map_t int64 [E]                            each one's place in idx

    Making one checks dtypes and shapes; `validate` checks every entry.
    """

    queries: int
    keys: int
    patterns: int
    ptr: Tensor
    idx: Tensor
    ptr_t: Tensor
    idx_t: Tensor
    map_t: Tensor

    def __post_init__(self) -> None:
        if self.queries < 0 or self.keys < 0 or self.patterns < 1:
            raise ValueError(f"{self.patterns} patterns of {self.queries} queries × {self.keys} keys")
        edges = self.idx.numel()
        check_tensor("ptr", self.ptr, torch.int64, (self.patterns * self.queries + 1,))
        check_tensor("idx", self.idx, torch.int32, (edges,))
        check_tensor("ptr_t", self.ptr_t, torch.int64, (self.patterns * self.keys + 1,))
        check_tensor("idx_t", self.idx_t, torch.int32, (edges,))
        check_tensor("map_t", self.map_t, torch.int64, (edges,))

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Edges":
        """From bool [queries, keys] or [M, queries, keys]; True is kept."""
        if mask.dtype != torch.bool or mask.dim() not in (2, 3):
            raise ValueError(f"a mask is bool [queries, keys] or [M, queries, keys], not {mask.dtype} {[*mask.shape]}")
        masks = mask if mask.dim() == 3 else mask.unsqueeze(0)
        patterns, queries, keys = masks.shape
        row, key = masks.flatten(0, 1).nonzero(as_tuple=True)
        return cls._from_rows(row, key, queries, keys, patterns)

    @classmethod
    def from_pairs(
        cls,
        pattern: Tensor,
        query: Tensor,
        key: Tensor,
        *,
        queries: int,
        keys: int,
        patterns: int = 1,
        sort: bool = False,
    ) -> "Edges":
        """From edges one by one, integers [E] three times, in order of pattern, query, key (or in any, with `sort`).

        Raises ValueError naming the first edge that is out of range, a duplicate, or unsorted.
        """
        columns = [torch.as_tensor(each).to(torch.int64) for each in (pattern, query, key)]
        if any(each.dim() != 1 or each.numel() != columns[0].numel() for each in columns):
            raise ValueError(f"pattern, query and key have shapes {[list(each.shape) for each in columns]}")
        for name, each, size in zip(("pattern", "query", "key"), columns, (patterns, queries, keys), strict=True):
            wrong = (each < 0) | (each >= size)
            if bool(wrong.any()):
                place = int(wrong.nonzero()[0])
                raise ValueError(f"{name} {int(each[place])} of edge {place} is out of range, there are {size}")
        row, column = columns[0] * queries + columns[1], columns[2]
        if sort:
            order = torch.argsort(row * keys + column, stable=True)
            row, column = row[order], column[order]
        check_ascending("edges", row, column, queries, keys)
        return cls._from_rows(row, column, queries, keys, patterns)

    @classmethod
    def _from_rows(cls, row: Tensor, key: Tensor, queries: int, keys: int, patterns: int) -> "Edges":
        ptr, idx = pointers(row, patterns * queries, torch.int64), key.to(torch.int32)
        return cls(queries, keys, patterns, ptr, idx, *transpose(ptr, idx, patterns, keys))

    @property
    def density(self) -> float:
        """The share of pairs kept, 0..1."""
        return self.idx.numel() / max(self.patterns * self.queries * self.keys, 1)

    def tensors(self) -> list[Tensor]:
        """What operators take as `Tensor[] edges`, in the order of the fields."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)[3:]]

    def to(self, device: torch.device | str) -> "Edges":
        """The same on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)[3:]}
        return dataclasses.replace(self, **moved)

    def validate(self) -> "Edges":
        """Itself, if every edge is valid; raises ValueError that names the first that is not."""
        check_rows("edges", self.ptr, self.idx, self.keys, self.patterns)
        expected = transpose(self.ptr, self.idx, self.patterns, self.keys)
        check_transposed("edges", (self.ptr_t, self.idx_t, self.map_t), expected)
        return self

    def dense_mask(self) -> Tensor:
        """bool [M, queries, keys]: for tests and small sizes."""
        mask = torch.zeros(self.patterns * self.queries, self.keys, dtype=torch.bool, device=self.idx.device)
        mask[rows_of(self.ptr), self.idx.long()] = True
        return mask.view(self.patterns, self.queries, self.keys)
