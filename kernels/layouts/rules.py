"""A pattern of attention as rules of blocks per head: columns, distances and single blocks; small, of any length."""

from dataclasses import dataclass

import torch
from surgery.kernels.layouts.blocks import Blocks
from torch import Tensor

LANES, LARGEST = 16, 128
"""What blocks a kernel takes: multiples of the one, up to the other."""


@dataclass(frozen=True, eq=False)
class Rules:
    """Key j is kept for query i, at positions counted from the first key, iff for r = i // block and c = j // block

        columns[h, c]    or    distances[h, r - c + D // 2]    or    (h, r, c) is one of the entries

    block      queries and keys of a block; 1: single edges
    columns    bool [H, C + 1], the last False: what is past them all
    distances  bool [H, D], D odd, the first and the last False: what is farther than them all
    entries    int32 [E, 3]: (head, row, column) of single blocks, each once
    length     how many keys the entries were made for, 0 without entries: columns and distances know no length

    A first column is what is called a sink, the first distances a window, another column vertical, another distance a
    slash. Whether keys ahead of a query are seen is no part of it.
    """

    block: int
    columns: Tensor
    distances: Tensor
    entries: Tensor
    length: int = 0

    def __post_init__(self) -> None:
        check_rules(self.tensors(), self.block, self.length)

    @classmethod
    def of(
        cls,
        heads: int,
        block: int,
        *,
        columns: list[list[int]] | None = None,
        distances: list[list[int]] | None = None,
        entries: Tensor | None = None,
        length: int = 0,
    ) -> "Rules":
        """From lists per head of block columns, and of distances in blocks (below 0: ahead of the query)."""
        columns, distances = columns or [[]] * heads, distances or [[]] * heads
        widest = max((column for each in columns for column in each), default=-1) + 2
        reach = max((abs(distance) for each in distances for distance in each), default=-1) + 1
        entries = torch.zeros(0, 3, dtype=torch.int32) if entries is None else entries.to(torch.int32)
        near = [[distance + reach for distance in each] for each in distances]
        return cls(block, _flags(columns, widest), _flags(near, 2 * reach + 1), entries, length if len(entries) else 0)

    @property
    def heads(self) -> int:
        return self.columns.shape[0]

    def tensors(self) -> list[Tensor]:
        """What the operator takes as `Tensor[] rules`."""
        return [self.columns, self.distances, self.entries]

    def to(self, device: torch.device | str) -> "Rules":
        """The same with its tensors on a device."""
        return Rules(self.block, *(each.to(device) for each in self.tensors()), self.length)

    def mask(self, queries: int, keys: int, causal: bool) -> Tensor:
        """bool [H, queries, keys]; the queries are the last of the keys. Raises ValueError past the length."""
        kept = self.part(slice(0, queries), queries, keys)
        return kept.tril(keys - queries) if causal else kept

    def part(self, rows: slice, queries: int, keys: int) -> Tensor:
        """Rows of `mask(queries, keys, False)`."""
        self.refuse_longer(keys)
        query = torch.arange(rows.start, rows.stop, device=self.columns.device) + keys - queries
        row, column = query // self.block, torch.arange(keys, device=self.columns.device) // self.block
        if not len(row):
            return torch.zeros(self.heads, 0, keys, dtype=torch.bool, device=self.columns.device)
        there = torch.arange(int(row[0]), int(row[-1]) + 1, device=row.device)
        table = self.table(there, -(-keys // self.block))
        return table.index_select(2, column).index_select(1, row - row[0])

    def blocks(self, queries: int, keys: int, causal: bool) -> Blocks:
        """The same as a layout for kernels, of blocks of this size where they take it."""
        self.refuse_longer(keys)
        past = keys - queries
        if self.block % LANES or self.block > LARGEST or past % self.block:
            return Blocks.from_mask(self.mask(queries, keys, causal), (64, 64))
        rows = torch.arange(past // self.block, -(-keys // self.block), device=self.columns.device)
        table = self.table(rows, -(-keys // self.block))
        return Blocks.from_table(table, queries, keys, (self.block, self.block), causal)

    def refuse_longer(self, keys: int) -> None:
        """Raise ValueError where there are more keys than the entries were made for."""
        if self.length and keys > self.length:
            raise ValueError(
                f"this attention pattern was made for {self.length} keys and holds single "
                f"{'blocks' if self.block > 1 else 'edges'}, got {keys} keys: give shorter input, or sparsify again on "
                "data of this length; a pattern of sink, window, vertical and slash alone has no limit"
            )

    def table(self, row: Tensor, blocks: int) -> Tensor:
        """Which blocks some block rows keep: bool [H, rows, blocks]."""
        column = torch.arange(blocks, device=row.device)
        far = self.distances.shape[1] - 1
        apart = (row[:, None] - column + far // 2).clamp(0, far)
        kept = self.columns[:, column.clamp(max=self.columns.shape[1] - 1)][:, None] | self.distances[:, apart]
        if len(self.entries):
            table = torch.zeros(self.heads, blocks, blocks, dtype=torch.bool, device=row.device)
            inside = self.entries[(self.entries[:, 1:] < blocks).all(1)].long()
            table[inside[:, 0], inside[:, 1], inside[:, 2]] = True
            kept = kept | table[:, row[:, None], column]
        return kept


def check_rules(rules: list[Tensor], block: int, length: int) -> None:
    """Raise ValueError unless these are the tensors of `Rules`; the numbers in the entries are trusted."""
    if len(rules) != 3:
        raise ValueError(f"rules are three tensors (columns, distances, entries), got {len(rules)}")
    columns, distances, entries = rules
    if columns.dtype != torch.bool or columns.dim() != 2 or not columns.shape[1]:
        raise ValueError(f"columns are bool [heads, columns + 1], got {columns.dtype} {list(columns.shape)}")
    if distances.dtype != torch.bool or distances.shape[:1] != columns.shape[:1] or distances.shape[1] % 2 == 0:
        raise ValueError(f"distances are bool [heads, an odd number], got {distances.dtype} {list(distances.shape)}")
    if entries.dtype != torch.int32 or entries.dim() != 2 or entries.shape[1] != 3:
        raise ValueError(f"entries are int32 [E, 3], got {entries.dtype} {list(entries.shape)}")
    if block < 1 or length < 0 or bool(length) != bool(len(entries)):
        raise ValueError(f"block is {block} and length {length} of {len(entries)} entries: a length goes with entries")


def _flags(places: list[list[int]], width: int) -> Tensor:
    flags = torch.zeros(len(places), max(width, 1), dtype=torch.bool)
    for head, each in enumerate(places):
        flags[head, each] = True
    return flags
