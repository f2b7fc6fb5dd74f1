"""What a report shows of sparse attention: edges and attention mass kept per head, and a map of each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from surgery.targets.attention_mass import Mass, blocked
from surgery.targets.edge_work import Laid

LARGEST = 64
"""Rows and columns of a map."""


def site_row(laid: Laid, mass: Mass | None, lowered: str) -> dict[str, Any]:
    """One site: `kept` per head the share of possible edges, `mass` the attention that passes through them."""
    kept, area = kept_blocks(laid)
    row = {
        "site": laid.site.name,
        "layer": laid.site.layer,
        "heads": laid.rules.heads,
        "kept": (kept.sum((1, 2)) / area.sum()).tolist(),
        "mass": None,
        "dead": [],
        "lowered": lowered,
    }
    shown = torch.where(area > 0, kept / area.clamp(min=1), 0.0)
    dense = torch.zeros_like(shown)
    if mass is not None and mass.table is not None:
        share = mass.share
        inside = share * (shown[:, : share.shape[1], : share.shape[2]] > 0)
        row["mass"] = inside.sum((1, 2)).tolist()
        dense = share / share.amax((1, 2), keepdim=True).clamp(min=1e-300)
    return row | {"map": edge_map(dense, shown)}


def kept_blocks(laid: Laid) -> tuple[Tensor, Tensor]:
    """Edges kept of each block [H, R, C] of the pattern's blocks, of 64 where those are single edges, and edges that can
    be [R, C]."""
    length, block = laid.length, picture_block(laid)
    kept = torch.stack(
        [blocked(each[None].double(), block)[0] for each in laid.rules.mask(length, length, laid.site.causal)]
    )
    every = torch.ones(1, length, length, dtype=torch.float64)
    return kept, blocked(every.tril() if laid.site.causal else every, block)[0]


def picture_block(laid: Laid) -> int:
    return laid.rules.block if laid.rules.block > 1 else max(1, -(-laid.length // LARGEST))


def edge_map(dense: Tensor, kept: Tensor) -> dict[str, Any]:
    """[H, R, C] of 0..1 each as bytes, at most 64 × 64."""
    size = min(LARGEST, kept.shape[1])
    return {"size": size, "dense": _bytes(dense, size), "kept": _bytes(kept, size)}


def finding(
    work: Any, rows: Sequence[dict[str, Any]], *, length: int, data_rows: int, requested: float | None
) -> dict[str, Any]:
    """The finding of a clause; `achieved` is the share of edges that went, over all heads alike."""
    kept = [share for row in rows for share in row["kept"]]
    return {
        "kind": "edges",
        "clause": work.clause,
        "place": work.place,
        "via": work.via,
        "normalize": work.normalize,
        "requested": requested,
        "achieved": 1 - sum(kept) / max(len(kept), 1),
        "length": length,
        "rows": data_rows,
        "sites": list(rows),
    }


def _bytes(table: Tensor, size: int) -> list:
    small = adaptive_avg_pool2d(table[None].float(), (size, size))[0] if table.shape[1] != size else table
    small = small / small.amax((1, 2), keepdim=True).clamp(min=1e-30) if table.shape[1] != size else small
    return small.clamp(0, 1).mul(255).round().to(torch.uint8).tolist()
