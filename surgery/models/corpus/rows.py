"""Rows of tokens: windows cut from a stream of text, or one row per line."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 20
"""Characters tokenized at a time: what is kept in memory, and how far the tokenizer sees."""
LINES = 1000
POOL = 4
"""Rows are drawn from this many times as many as are wanted, the first ones of the file."""

Row = tuple[int, ...]


def windows(tokenizer: Any, texts: Iterable[str], length: int, wanted: int) -> list[Row]:
    """Distinct rows of exactly `length` tokens, one behind the other, without special tokens; the rest is left out."""
    rows: dict[Row, None] = {}
    left: list[int] = []
    for block in _blocks(texts):
        tokens = left + tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(tokens) - len(tokens) % length
        rows |= dict.fromkeys(tuple(tokens[first : first + length]) for first in range(0, whole, length))
        left = tokens[whole:]
        if len(rows) >= POOL * wanted:
            break
    return list(rows)


def lines(tokenizer: Any, texts: Iterable[str], length: int, wanted: int) -> list[Row]:
    """Distinct rows of at most `length` tokens, a row per text that is not blank, special tokens as in training."""
    rows: dict[Row, None] = {}
    for some in _bunches(text.strip() for text in texts if text.strip()):
        read = tokenizer(some, truncation=True, max_length=length, verbose=False)["input_ids"]
        rows |= dict.fromkeys(map(tuple, read))
        if len(rows) >= POOL * wanted:
            break
    return [row for row in rows if row]


def padded(rows: Sequence[Row], fill: int) -> tuple[Tensor, Tensor]:
    """Rows as [N, T] with `fill` at the right, and their mask [N, T], 1 where a token is real."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return tokens, mask


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= BLOCK:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _bunches(texts: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == LINES:
            yield held
            held = []
    if held:
        yield held
