"""What a spec will do to a model, before anything is done."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from surgery.plan.action import Action, TensorChange
from surgery.plan.size import Size


@dataclass(frozen=True)
class Match:
    """What a selector bound: its text, its place in the spec, and the sites by name."""

    text: str
    place: str
    matched: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {"text": self.text, "place": self.place, "matched": list(self.matched)}


@dataclass(frozen=True)
class Plan:
    """`model` reference and `spec` text as given; `fingerprint` of the model's structure (no weights are read);
    `size` of the model before and, by the actions' own account, after."""

    model: str
    spec: str
    fingerprint: str
    tensors: dict[str, str]
    actions: tuple[Action, ...]
    matches: tuple[Match, ...]
    size: Size
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The plan as JSON-able data, format `surgery.plan/1`."""
        saved, saved_bytes = saved_by(self.actions)
        saved_flops = sum(action.flops for action in self.actions)
        return {
            "format": "surgery.plan/1",
            "model": {"reference": self.model, "fingerprint": self.fingerprint, "tensors": self.tensors},
            "spec": self.spec,
            "selectors": [match.document() for match in self.matches],
            "actions": [action.document() for action in self.actions],
            "size": {
                "parameters": {"before": self.size.parameters, "after": self.size.parameters - saved},
                "bytes": {"before": self.size.bytes, "after": self.size.bytes - saved_bytes},
                "flops": {"saved": saved_flops},
            },
            "notes": list(self.notes),
        }


def saved_by(actions: Iterable[Action]) -> tuple[int, int]:
    """Parameters and bytes that all actions save together: what two of them cut from one tensor counts once.

    Each leaves its share of a tensor, and shares multiply: channels of a layer that goes as a whole are not saved twice.
    """
    changes: dict[str, list[TensorChange]] = {}
    for action in actions:
        for change in action.tensors:
            changes.setdefault(change.name, []).append(change)
    saved = {name: _saved(each) for name, each in changes.items()}
    return sum(saved.values()), sum(count * changes[name][0].itemsize for name, count in saved.items())


def _saved(changes: list[TensorChange]) -> int:
    """Entries of one tensor that all its changes save together."""
    whole = prod(changes[0].before)
    if not whole or len(changes) == 1:
        return sum(change.parameters for change in changes)
    return whole - whole * prod(prod(change.after) for change in changes) // whole ** len(changes)
