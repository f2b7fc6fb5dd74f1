"""What one clause will do to one place of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any


@dataclass(frozen=True)
class TensorChange:
    """A tensor's shape before and after; `itemsize` in bytes."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    itemsize: int = 4

    @property
    def parameters(self) -> int:
        """Entries saved (negative: added)."""
        return prod(self.before) - prod(self.after)

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "before": list(self.before), "after": list(self.after)}


@dataclass(frozen=True)
class Action:
    """One cut: where, from what to what, what it saves and why it is this much.

    `sites` are names of the sites cut together; `before` and `after` the sizes a person thinks in (width, heads, …);
    `flops` saved per sample; `notes` roundings and reasons; `settings` the operation's options as bound.
    """

    clause: str
    place: str
    operation: str
    kind: str
    sites: tuple[str, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    tensors: tuple[TensorChange, ...] = ()
    flops: int = 0
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        first = self.sites[0] if self.sites else self.kind
        return first if len(self.sites) < 2 else f"{first} + {len(self.sites) - 1} more"

    @property
    def parameters(self) -> int:
        return sum(change.parameters for change in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(change.parameters * change.itemsize for change in self.tensors)

    def document(self) -> dict[str, Any]:
        return {
            "clause": self.clause,
            "place": self.place,
            "operation": self.operation,
            "site": self.site,
            "sites": list(self.sites),
            "kind": self.kind,
            "before": dict(self.before),
            "after": dict(self.after),
            "tensors": [change.document() for change in self.tensors],
            "saved": {"parameters": self.parameters, "bytes": self.bytes, "flops": self.flops},
            "notes": list(self.notes),
            "choice": dict(self.settings),
        }
