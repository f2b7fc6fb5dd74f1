"""The hoisted modulation of a DiT-XL, 1152 → 28 · 6 · 1152 with 34 % of the inputs kept: 8 rows, or 256."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.modulation import modulation
from surgery.kernels.tuning.case import Call, Case, each_row, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

ROWS = {"narrow": 8, "wide": 256}


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("modulation", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    kept, outputs = sized(device, 392, 32), sized(device, 28 * 6 * 1152, 64)
    c, weight, bias = inputs(row, device, (ROWS[row.tile], kept), (outputs, kept), (outputs,))
    return without_gradient(lambda: modulation(c, weight, bias))
