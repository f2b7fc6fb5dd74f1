"""A gated feed-forward of 4096 → 14336 with a tenth of its blocks: one row, 16, or 64."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.gathered_ffn import FeedForward, gathered_ffn
from surgery.kernels.tuning.case import Call, Case, each_row, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

BLOCK = 64
ROWS = {"one": 1, "merge": 1, "narrow": 16, "wide": 64}
SHARE = 10


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("gathered_ffn", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    d, f = sized(device, 4096, 64), sized(device, 14336, 4 * BLOCK)
    rows = ROWS[row.tile.split()[-1]]
    x, up, gate, down_t = inputs(row, device, (rows, d), (f, d), (f, d), (f, d))
    weights = FeedForward(up * d**-0.5, gate=gate * d**-0.5, down_t=down_t * f**-0.5, activation="silu")
    listed = torch.arange(0, f // BLOCK, sized(device, SHARE, 2), dtype=torch.int32, device=device)
    return without_gradient(lambda: gathered_ffn(x, weights, listed, block=BLOCK, dense_above=1.0, check=False))
