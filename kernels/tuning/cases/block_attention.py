"""Causal block-sparse attention, a quarter of the blocks kept, per head: 4096 tokens of 16 heads on 4."""

from collections.abc import Iterator

import torch
from surgery.kernels.layouts import Blocks
from surgery.kernels.operators.block_attention import block_attention
from surgery.kernels.tuning.case import Call, Case, each_row, gradient, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

SIDES = ((128, 128), (64, 64), (32, 32), (16, 64), (16, 16))
DENSITY = 0.25


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("block_attention", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    from surgery.kernels.triton._blocks import tile_class

    kernel = row.tile.partition(" ")[0]
    side = next(side for side in SIDES if tile_class(kernel, side) == row.tile)
    length = sized(device, 4096, 2 * max(side))
    heads, kv_heads = sized(device, 16, 2), sized(device, 4, 1)
    grid = (heads, -(-length // side[0]), -(-length // side[1]))
    keep = torch.rand(grid, generator=torch.Generator().manual_seed(0)) < DENSITY
    blocks = Blocks.from_table(keep, length, length, side, causal=True).to(device)
    shapes = [(1, each, length, row.dim) for each in (heads, kv_heads, kv_heads)]
    q, k, v = inputs(row, device, *shapes, grad=kernel != "forward")
    if kernel == "forward":
        return without_gradient(lambda: block_attention(q, k, v, blocks))
    return gradient(block_attention(q, k, v, blocks), (q, k, v))
