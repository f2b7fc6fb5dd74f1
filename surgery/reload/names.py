"""Blocks that went leave gaps in the numbers of a list; a library's own class counts without gaps."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from surgery.passes.graph_copy import copy_graph_module


@dataclass(frozen=True)
class Gap:
    """A list of modules at `path`, `count` long, of which those numbered `kept` are left."""

    path: str
    count: int
    kept: tuple[int, ...]


def gaps(original: Iterable[str], left: Iterable[str]) -> tuple[Gap, ...]:
    """Outermost lists of which some entries lost all their tensors. Names are dotted."""
    before, after = _lists(original), _lists(left)
    found: list[Gap] = []
    for path in sorted(before, key=len):
        kept = after.get(path, set())
        inner = any(path.startswith(f"{gap.path}.") for gap in found)
        if kept and kept != before[path] and not inner:
            found.append(Gap(path, max(before[path]) + 1, tuple(sorted(kept))))
    return tuple(found)


def renumbered(name: str, found: Iterable[Gap]) -> str:
    """`layers.3.mlp` → `layers.2.mlp` where layer 1 or 2 is gone; `layers` itself and other names stay."""
    for gap in found:
        number, dot, rest = name.removeprefix(f"{gap.path}.").partition(".")
        if name.startswith(f"{gap.path}.") and number.isdigit() and int(number) in gap.kept:
            return f"{gap.path}.{gap.kept.index(int(number))}{dot}{rest}"
    return name


def rename(graph_module: GraphModule, found: tuple[Gap, ...]) -> GraphModule:
    """A copy whose tensors and owners are counted without gaps; the tensors are shared."""
    if not found:
        return graph_module
    copied = copy_graph_module(graph_module)
    tensors = {node.target: _take(copied, node.target) for node in copied.graph.nodes if node.op == "get_attr"}
    for path in {gap.path for gap in found}:
        _holder(copied, path).clear()
    for node in copied.graph.nodes:
        _rename_node(node, found)
    for name, (shelf, tensor) in tensors.items():
        _put(copied, renumbered(name, found), shelf, tensor)
    copied.recompile()
    return copied


def _rename_node(node: Node, found: tuple[Gap, ...]) -> None:
    if node.op == "get_attr":
        node.target = renumbered(node.target, found)
    stack = node.meta.get("nn_module_stack")
    if stack:
        node.meta["nn_module_stack"] = {
            renumbered(key, found): (renumbered(path, found), kind) for key, (path, kind) in stack.items()
        }


def _lists(names: Iterable[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in names:
        words = name.split(".")
        for place, word in enumerate(words):
            if word.isdigit() and place:
                found.setdefault(".".join(words[:place]), set()).add(int(word))
    return found


def _holder(module, path: str) -> dict:
    return module.get_submodule(path)._modules


def _take(module, name: str):
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    for shelf in ("_parameters", "_buffers"):
        if leaf in getattr(owner, shelf):
            kept = leaf in owner._non_persistent_buffers_set
            return (shelf, kept), getattr(owner, shelf)[leaf]
    return ("", False), getattr(owner, leaf)


def _put(module, name: str, shelf: tuple[str, bool], tensor) -> None:
    import torch

    *path, leaf = name.split(".")
    for word in path:
        if word not in module._modules:
            module.add_module(word, torch.nn.Module())
        module = module._modules[word]
    kind, passing = shelf
    if not kind:
        setattr(module, leaf, tensor)
    elif kind == "_parameters":
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=not passing)
