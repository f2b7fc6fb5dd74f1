"""Causal gated attention over 4096 tokens, 16 heads on 4: hard gates forward, sampled ones backward, as training has."""

from collections.abc import Iterator

import torch
from surgery.kernels.operators.gated_attention import gated_attention
from surgery.kernels.tuning.case import Call, Case, each_row, gradient, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("gated_attention", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    length, heads, kv_heads = sized(device, 4096, 32), sized(device, 16, 2), sized(device, 4, 1)
    shapes = [(1, each, length, row.dim) for each in (heads, kv_heads, kv_heads)]
    q, k, v, bias = inputs(row, device, *shapes, (heads,), grad=row.tile != "forward")
    if row.tile == "forward":
        return without_gradient(lambda: gated_attention(q, k, v, bias, causal=True).out)
    return gradient(gated_attention(q, k, v, bias, causal=True, gates="sampled", seed=0).out, (q, k, v))
