"""Masks packed 32 to a word: bit j of word w says whether column 32 * w + j is kept."""

import torch
from torch import Tensor

WORD = 32

# Eight bytes that are 0 or 1, times this, have their eight bits side by side in the top byte: byte i, worth 2^(8i),
# meets the term 2^(56-7i) there, and no two other terms meet at all, so nothing carries.
_GATHER = 0x0102040810204080


def words(columns: int) -> int:
    """How many words hold this many columns."""
    return -(-columns // WORD)


def pack(mask: Tensor) -> Tensor:
    """bool [..., n] → int32 [..., ceil(n / 32)]; bits past n are 0. The inverse of `unpack`."""
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is bool, this one is {mask.dtype}")
    short = -mask.shape[-1] % WORD
    whole = torch.nn.functional.pad(mask, (0, short)) if short else mask
    if whole.numel() == 0:
        return torch.zeros((*whole.shape[:-1], whole.shape[-1] // WORD), dtype=torch.int32, device=mask.device)
    eights = whole.contiguous().view(torch.int64)
    return ((eights * _GATHER) >> 56).to(torch.uint8).view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """int32 [..., w] → bool [..., columns], columns <= 32 * w."""
    if packed.dtype != torch.int32:
        raise ValueError(f"packed masks are int32, this one is {packed.dtype}")
    if columns > packed.shape[-1] * WORD:
        raise ValueError(f"{packed.shape[-1]} words hold {packed.shape[-1] * WORD} columns, not {columns}")
    place = torch.arange(WORD, dtype=torch.int32, device=packed.device)
    return ((packed.unsqueeze(-1) >> place) & 1).bool().flatten(-2)[..., :columns]


def interval(start: Tensor, stop: Tensor, columns: int) -> Tensor:
    """The packed mask of `start <= column < stop`: int64 [...] twice → int32 [..., words(columns)].

    Bounds may lie outside [0, columns); an interval that ends before it starts is empty.
    """
    first = torch.arange(words(columns), device=start.device) * WORD
    room = (columns - first).clamp(max=WORD)
    low = torch.minimum((start.unsqueeze(-1) - first).clamp(min=0), room)
    high = torch.minimum((stop.unsqueeze(-1) - first).clamp(min=0), room)
    one = torch.ones((), dtype=torch.int64, device=start.device)
    return ((one << torch.maximum(low, high)) - (one << low)).to(torch.int32)


def count(packed: Tensor) -> Tensor:
    """How many bits of each word are set: int32 [...] → int32 [...]."""
    twos = packed.to(torch.int64) & 0xFFFFFFFF
    twos = twos - ((twos >> 1) & 0x55555555)
    fours = (twos & 0x33333333) + ((twos >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (((eights * 0x01010101) >> 24) & 0xFF).to(torch.int32)
