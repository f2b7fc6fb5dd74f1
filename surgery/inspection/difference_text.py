"""A difference as text: like a diff, with repeated blocks told once."""

import re
from collections.abc import Iterable, Iterator

from rich.text import Text

from surgery.inspection.blocks import Blocks
from surgery.inspection.code import mark_text
from surgery.inspection.difference import Difference, NodeChange
from surgery.inspection.quantities import bytes_text, change_text, count_text
from surgery.inspection.tensor_diff import TensorChange

STYLES = {"+": "green", "-": "red", "~": "yellow", "@": "cyan"}
SIGNS = {"added": "+", "removed": "-"}


def difference_text(difference: Difference, before: str, after: str, *, full: bool = False) -> Text:
    """Sizes, tensors, then operations by module; `full` tells every block by itself."""
    lines = [f"--- {before}", f"+++ {after}"]
    if difference.identical:
        lines.append(
            f"identical: {count_text(difference.same_nodes, 'node')}, {count_text(difference.same_tensors, 'tensor')}, "
            f"{count_text(difference.parameters[0], 'parameter')}"
        )
        return _styled(lines)
    blocks = difference.listings[0].blocks
    lines += ["", *_sizes(difference), "", *_tensors(difference, blocks, full), "", *_nodes(difference, blocks, full)]
    return _styled(lines)


def _styled(lines: Iterable[str]) -> Text:
    text = Text()
    for line in lines:
        style = "bold" if line.startswith(("---", "+++", "identical")) else STYLES.get(line[:1], "")
        text.append(f"{line}\n", style=style)
    text.rstrip()
    return text


def _sizes(difference: Difference) -> Iterator[str]:
    before, after = difference.parameters
    yield f"parameters  {before:,} → {after:,}  {change_text(before, after)}".rstrip()
    before, after = difference.bytes
    yield f"bytes       {bytes_text(before)} → {bytes_text(after)}  {change_text(before, after)}".rstrip()


def _tensors(difference: Difference, blocks: Blocks, full: bool) -> Iterator[str]:
    """One line for tensors that changed alike in several blocks."""
    yield f"tensors     {_counts(change.kind for change in difference.tensors)}{difference.same_tensors:,} the same"
    groups: dict[tuple[str, ...], list[TensorChange]] = {}
    for change in difference.tensors:
        key = (change.name if full else _starred(change.name, blocks), change.kind, change.before, change.after)
        groups.setdefault(key, []).append(change)
    names = [_spanned([change.name for change in changes], blocks) for changes in groups.values()]
    width = max(map(len, names), default=0)
    for name, changes in zip(names, groups.values(), strict=True):
        times = f"  × {len(changes)}" if len(changes) > 1 else ""
        yield f"{SIGNS.get(changes[0].kind, '~')} {name:<{width}}  {_tensor(changes)}{times}"


def _tensor(changes: list[TensorChange]) -> str:
    """What happened to tensors of one shape; of several, the largest change."""
    one = changes[0]
    if one.kind in ("added", "removed"):
        return one.after or one.before
    shapes = one.before if one.before == one.after else f"{one.before} → {one.after}"
    if one.kind == "unknown":
        return f"{shapes}  values unknown: one of the two has none"
    if one.max_abs is None:
        return shapes
    norm = f"  norm {one.norms[0]:.4g} → {one.norms[1]:.4g}" if len(changes) == 1 and one.norms else ""
    largest = max(change.max_abs or 0.0 for change in changes)
    share = max(change.fraction or 0.0 for change in changes)
    return f"{shapes}  max |Δ| {largest:.3g}, {_share(share)} of entries{norm}"


def _share(fraction: float) -> str:
    return "< 0.1 %" if 0 < fraction < 0.001 else f"{fraction:.1%}".replace("%", " %")


def _counts(kinds: Iterable[str]) -> str:
    """`2 added, 1 removed, `, in order of appearance."""
    found: dict[str, int] = {}
    for kind in kinds:
        found[kind] = found.get(kind, 0) + 1
    return "".join(f"{count:,} {kind}, " for kind, count in found.items())


def _nodes(difference: Difference, blocks: Blocks, full: bool) -> Iterator[str]:
    yield f"nodes       {_counts(change.kind for change in difference.nodes)}{difference.same_nodes:,} the same"
    sections: dict[str, dict[tuple[str, ...], list[NodeChange]]] = {}
    for change in difference.nodes:
        lines = tuple(_lines(change)) if full else tuple(_generic(line, blocks) for line in _lines(change))
        heading = change.module if full else _starred(change.module, blocks)
        sections.setdefault(heading, {}).setdefault(lines, []).append(change)
    for heading, groups in sections.items():
        changes = [change for each in groups.values() for change in each]
        modules = list(dict.fromkeys(change.module for change in changes))
        model = difference.listings[0].classes.get("", "model")
        yield f"@@ {_spanned(modules, blocks) if heading else model} @@" + (f" × {len(modules)}" if modules[1:] else "")
        if modules[1:]:
            yield from _section(groups, len(modules))
        else:
            yield from _section({tuple(_lines(change)): [change] for change in changes}, 1)


def _section(groups: dict[tuple[str, ...], list[NodeChange]], often: int) -> Iterator[str]:
    told: set[str] = set()
    for lines, changes in groups.items():
        for mark in map(mark_text, changes[0].marks):
            if mark not in told:
                yield f"  ✂ {mark}"
            told.add(mark)
        for index, line in enumerate(lines):
            rare = not index and len(changes) < often and often > 1
            yield line + (f"  × {len(changes)}" if rare else "")


def _lines(change: NodeChange) -> Iterator[str]:
    if change.what == ("shape",):
        yield f"~ {change.before}  # {change.before_value} → {change.after_value}"
        return
    if change.before:
        yield f"- {change.before}" + (f"  # {change.before_value}" if change.before_value else "")
    if change.after:
        yield f"+ {change.after}" + (f"  # {change.after_value}" if change.after_value else "")


def _starred(path: str, blocks: Blocks) -> str:
    """A path or text with the index of its block as a star: `blocks.*.attn.qkv`."""
    for above in blocks.lists:
        path = re.sub(rf"\b{re.escape(above)}\.\d+\b", f"{above}.*", path)
    return path


def _spanned(paths: list[str], blocks: Blocks) -> str:
    """Paths that differ only in the block, as one: `blocks.*.mlp` for all blocks, `blocks.{1,3}.mlp` for some."""
    block = blocks.of(paths[0])
    if len(paths) == 1 or not block:
        return paths[0]
    above, _ = block
    indices = sorted(found[1] for path in paths if (found := blocks.of(path)))
    some = "{" + ",".join(map(str, indices)) + "}"
    return _starred(paths[0], blocks).replace("*", "*" if tuple(indices) == blocks.lists[above] else some, 1)


def _generic(line: str, blocks: Blocks) -> str:
    """A line that reads the same for every block: `h3_add` is `h*_add`."""
    for prefix in set(blocks.prefixes.values()):
        line = re.sub(rf"\b{re.escape(prefix)}\d+(?=_|\b)", f"{prefix}*", line)
    return _starred(line, blocks)
