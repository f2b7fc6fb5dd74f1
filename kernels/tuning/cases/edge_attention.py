"""Attention over 2 % of all pairs: 4096 tokens; 16 heads on 4 with one pattern (group) or each its own (edges)."""

from collections.abc import Iterator

import torch
from surgery.kernels.layouts import Edges
from surgery.kernels.operators.edge_attention import edge_attention
from surgery.kernels.tuning.case import Call, Case, each_row, gradient, inputs, sized, without_gradient
from surgery.kernels.tuning.pick import Config

DENSITY = 0.02


def tuning_cases(device: torch.device) -> Iterator[Case]:
    return each_row("edge_attention", device, prepare)


def prepare(row: Config, device: torch.device) -> Call:
    kind, _, backward = row.tile.partition("_")
    length, heads, kv_heads = sized(device, 4096, 16), sized(device, 16, 2), sized(device, 4, 1)
    patterns = heads if kind == "edges" else 1
    mask = torch.rand((patterns, length, length), generator=torch.Generator().manual_seed(0)) < DENSITY
    edges = Edges.from_mask(mask).to(device)
    shapes = [(1, each, length, row.dim) for each in (heads, kv_heads, kv_heads)]
    q, k, v = inputs(row, device, *shapes, grad=bool(backward))
    how = {"normalize": "all" if kind == "dense" else "kept"}
    if not backward:
        return without_gradient(lambda: edge_attention(q, k, v, edges, **how))
    return gradient(edge_attention(q, k, v, edges, **how), (q, k, v))
