"""What a spec will do to a model, before anything is done."""

from dataclasses import dataclass
from typing import Any

from surgery.plan.action import Action
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
        saved = sum(action.parameters for action in self.actions)
        saved_bytes = sum(action.bytes for action in self.actions)
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
