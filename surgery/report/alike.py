"""Actions that do the same to one layer after another, told as one."""

import re
from collections.abc import Iterable
from typing import Any

NUMBER = re.compile(r"\d+")


def folded(actions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Actions of one clause, neighbours of the same change as one, with a range in its name and the sum of what they save.

    `model.layers.0.mlp` to `model.layers.5.mlp`, each `width 384 → 288`, become `model.layers.0..5.mlp`.
    """
    groups: list[list[dict[str, Any]]] = []
    for action in actions:
        if groups and _alike(groups[-1][-1], action):
            groups[-1].append(action)
        else:
            groups.append([action])
    return [_joined(group) for group in groups]


def folded_names(matched: Iterable[str]) -> list[str]:
    """`a.0.mlp: 384 channels`, `a.1.mlp: 384 channels` → `a.0,1.mlp: 384 channels`: what a selector matched."""
    groups: list[list[tuple[str, str]]] = []
    for name, _, described in (one.partition(": ") for one in matched):
        last = groups[-1][-1] if groups else None
        if last and last[1] == described and NUMBER.split(last[0]) == NUMBER.split(name):
            groups[-1].append((name, described))
        else:
            groups.append([(name, described)])
    told = ((ranged([name for name, _ in group]) if len(group) > 1 else group[0][0], group[0][1]) for group in groups)
    return [": ".join(filter(None, pair)) for pair in told]


def _alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    same = all(first.get(key) == second.get(key) for key in ("clause", "place", "before", "after", "saved", "kind"))
    same = same and all(_chosen(first, key) == _chosen(second, key) for key in ("by", "scope", "when", "compensate"))
    return same and NUMBER.split(first["site"]) == NUMBER.split(second["site"])


def _chosen(action: dict[str, Any], key: str) -> Any:
    return (action.get("choice") or {}).get(key)


def _joined(group: list[dict[str, Any]]) -> dict[str, Any]:
    if len(group) == 1:
        return group[0]
    saved = {name: len(group) * value for name, value in (group[0].get("saved") or {}).items()}
    tensors = [row for action in group for row in action.get("tensors", ())]
    notes = list(dict.fromkeys(note for action in group for note in action.get("notes", ())))
    site = ranged([action["site"] for action in group])
    return group[0] | {"site": site, "saved": saved, "tensors": tensors, "notes": notes}


def ranged(names: list[str]) -> str:
    """`a.0.b`, `a.1.b`, `a.3.b` → `a.0,1,3.b`, and `a.0..3.b` where no number is missing.

    Names that differ in more than one number are the first and a count.
    """
    numbers = [[int(found) for found in NUMBER.findall(name)] for name in names]
    varying = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    if len(varying) != 1:
        return f"{names[0]} + {len(names) - 1} more"
    values = [row[varying[0]] for row in numbers]
    complete = values == list(range(values[0], values[-1] + 1)) and len(values) > 2
    told = f"{values[0]}..{values[-1]}" if complete else ",".join(map(str, values))
    start, end = list(NUMBER.finditer(names[0]))[varying[0]].span()
    return names[0][:start] + told + names[0][end:]
