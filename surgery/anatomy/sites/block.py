"""Blocks: the repeated containers that attention and feed-forward layers live in."""

import re
from collections.abc import Iterator

from surgery.anatomy.site import Site

INDEXED = re.compile(r"^(.*?(?:^|\.)(\d+))(?:\.|$)")


def find_blocks(sites: tuple[Site, ...]) -> Iterator[Site]:
    """One site per indexed container (`blocks.3`) that holds attention, a feed-forward layer or a conditional vector."""
    seen: dict[str, int] = {}
    for site in sites:
        path = block_path(site.path) if site.kind in ("attention", "mlp") else None
        if path is not None and path not in seen:
            seen[path] = len(seen)
            yield Site(kind="block", path=path, layer=seen[path])


def block_path(path: str) -> str | None:
    """`blocks.3` of `blocks.3.attn.qkv`; None outside any indexed container."""
    match = INDEXED.match(path)
    return match.group(1) if match else None
