"""Decoding from a tenth of a cache of 32768 tokens: 8 sequences, 32 heads on 8; one new token, or as many as fill rows."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.block_decode import block_decode
from surgery.kernels.tuning.case import Call, Case, each_row, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

BLOCK = 64
TOKENS = {"narrow": 1, "merge": 1, "wide": 16}
SHARE = 10


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("block_decode", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    batch, heads, kv_heads = sized(device, 8, 1), sized(device, 32, 4), sized(device, 8, 1)
    length = sized(device, 32768, 4 * BLOCK)
    shapes = [(batch, heads, TOKENS[row.tile], row.dim), *[(batch, kv_heads, length, row.dim)] * 2]
    q, k, v = inputs(row, device, *shapes)
    listed = torch.arange(0, length // BLOCK, min(SHARE, length // BLOCK), dtype=torch.int32, device=device)
    listed = listed.expand(batch, kv_heads, -1).contiguous()
    lengths = torch.full((batch,), length, dtype=torch.int32, device=device)
    return without_gradient(lambda: block_decode(q, k, v, listed, lengths, block=BLOCK))
