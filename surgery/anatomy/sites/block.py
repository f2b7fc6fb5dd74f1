"""Blocks: the repeated containers that attention and feed-forward layers live in."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from torch.fx import Node

from surgery.anatomy.site import Site

WORK = {"attention": "mixes tokens", "mlp": "feeds forward", "moe": "feeds forward"}


def find_blocks(sites: Iterable[Site]) -> Iterator[Site]:
    """One site per indexed container (`blocks.3`) that holds attention or a feed-forward layer, in the sites' order.

    Of nested containers (`stages.1.blocks.0`, `block.3.layer.1.SelfAttention`) the innermost that both mixes tokens and
    feeds forward is the block, and so are its neighbours that do one of the two. Without any, the outermost are.
    A container that is called again, its weights shared by several layers, is a block per call: `blocks.0`,
    `blocks.0@1`, …
    """
    sites = [site for site in sites if site.kind in WORK]
    done: dict[str, set[str]] = defaultdict(set)
    for site in sites:
        for path in indexed(site.path):
            done[path].add(WORK[site.kind])
    whole = {path for path, work in done.items() if len(work) == 2}
    lists = {_list(path) for path in whole}
    around = ((node, path) for site in sites for path in _around(site, whole, lists) for node in site.nodes)
    found = dict.fromkeys(called(node, path) or path for node, path in sorted(around, key=lambda pair: pair[0]))
    yield from (Site(kind="block", path=path, layer=layer) for layer, path in enumerate(found))


def called(node: Node, path: str) -> str | None:
    """The call of the module at `path` that made the node: `path` of the first, `path@1` of the second; None where
    none did."""
    for key, (place, _) in (node.meta.get("nn_module_stack") or {}).items():
        if place == path:
            number = key.rpartition("@")[2] if "@" in key else ""
            return f"{path}@{number}" if number.isdecimal() else path
    return None


def layer_of(path: str, layers: Mapping[str, int]) -> int | None:
    """The number of the block a path lies in; `layers` are blocks' numbers by their paths."""
    return next((layers[outer] for outer in reversed(indexed(path)) if outer in layers), None)


def indexed(path: str) -> list[str]:
    """`stages.1` and `stages.1.blocks.0` of `stages.1.blocks.0.attention`."""
    parts = path.split(".")
    return [".".join(parts[: place + 1]) for place, part in enumerate(parts) if part.isdigit()]


def _around(site: Site, whole: set[str], lists: set[str]) -> list[str]:
    """The block around a site, alone in a list; an empty one where there is none."""
    around = indexed(site.path)
    if not whole:
        return around[:1]
    inner = [path for path in around if path in whole] or [path for path in around if _list(path) in lists]
    return inner[-1:]


def _list(path: str) -> str:
    return path.rpartition(".")[0]
