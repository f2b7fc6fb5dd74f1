"""The logistic noise of sampled gates: a counter-based hash, the same bits on every device, kept nowhere.

All arithmetic is on 32-bit unsigned integers, modulo 2³²:

    mix(x)      x ^= x >> 16; x *= 0x7FEB352D; x ^= x >> 15; x *= 0x846CA68B; x ^= x >> 16
    head        mix(mix(mix(low(seed) ^ 0x9E3779B9) ^ high(seed)) ^ (b · Hq + h))      seed: 64 bits, two halves
    row(i)      mix(head ^ i)
    column(j)   mix(j ^ 0x85EBCA6B)
    bits(i, j)  mix(row(i) ^ column(j))
    u           ((bits >> 9) + 0.5) · 2⁻²³, exact in float32, in (0, 1), and so is 1 − u
    noise       log u − log(1 − u), standard logistic, |noise| < 16.7

`mix` is a bijection, so no two keys of a query share their bits, nor two queries of a head their row. The uniforms are equal
to the bit in PyTorch, C++ and Triton; the logarithm differs between them by an ulp. A backward recomputes them.

Source of the constants: C. Wellons, hash-prospector, "lowbias32".
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
SEED_KEY = 0x9E3779B9
COLUMN_KEY = 0x85EBCA6B


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64 (whose products wrap, so that the low word is right)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def uniform(seed: Tensor, heads: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """u of every (head b · Hq + h, query, key): float32 [len(heads), len(rows), len(columns)].

    seed is int64 of one element; the index vectors are int64.
    """
    seed = seed.reshape(())
    state = mix(mix((seed & WORD) ^ SEED_KEY) ^ ((seed >> 32) & WORD))
    head = mix(state ^ heads)
    row = mix(head[:, None] ^ rows)
    bits = mix(row[:, :, None] ^ mix(columns ^ COLUMN_KEY))
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def logistic(seed: Tensor, heads: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """The noise of every (head, query, key), in `dtype` (of at least 32 bits)."""
    u = uniform(seed, heads, rows, columns).to(dtype)
    return u.log() - (1 - u).log()
