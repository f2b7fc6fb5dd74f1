"""A spec that is understood."""

from dataclasses import dataclass
from typing import Any

from surgery.language import Spec
from surgery.operations.data import Data
from surgery.operations.model import Model
from surgery.operations.require import Require


@dataclass(frozen=True)
class Program:
    """What to do, in order. `operations` are sorted by phase, within a phase as written."""

    spec: Spec
    model: Model | None
    data: Data | None
    operations: tuple[Any, ...]
    requires: tuple[Require, ...]
