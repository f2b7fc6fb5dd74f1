"""Probes of a 4096-wide token against 224 blocks of one atom each: a list a row, or one for 16 rows."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.probe_select import probe_select
from surgery.kernels.tuning.case import Call, Case, each_row, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("probe_select", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    d, blocks = sized(device, 4096, 32), sized(device, 224, 8)
    x, probes, dictionary = inputs(row, device, (16, d), (row.dim, d), (row.dim, blocks))
    shared = row.tile == "shared"
    return without_gradient(lambda: probe_select(x, probes, dictionary, max(1, blocks // 10), shared=shared))
