"""What training or calibration on data left, for a work that changes values and not sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Learned:
    """`tensors` are new values of the graph's tensors, by name, and those of tensors that a pass adds; `told` says in
    the report how they came about; `findings` are further parts of the report; `notes` are sentences."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
