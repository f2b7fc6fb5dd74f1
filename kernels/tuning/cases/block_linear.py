"""A 4096 × 4096 weight with a tenth of its blocks: 16 rows (narrow) or 2048 (wide), and its two gradients."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.block_linear import block_linear
from surgery.kernels.operators.block_weight import BlockWeight
from surgery.kernels.tuning.case import Call, Case, each_row, gradient, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

DENSITY = 0.1


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("block_linear", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    kernel, _, size = row.tile.partition(" ")
    side = sized(device, 4096, 4 * row.dim)
    batch = 16 if size == "narrow" else sized(device, 2048, 32)
    x, dense = inputs(row, device, (batch, side), (side, side))
    weight = BlockWeight.from_dense(dense, (row.dim, row.dim), DENSITY)
    if kernel == "forward":
        return without_gradient(lambda: block_linear(x, weight))
    wanted = (x if kernel == "dx" else weight.values).requires_grad_()
    return gradient(block_linear(x, weight), (wanted,))
