"""What one run of generation remembers: how far it is, and the keys and values so far."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Memory:
    """before  nothing      after  keys and values [.., capacity, ..], of which the first `past` are filled

    past      tokens seen in earlier steps
    fresh     tokens of this step
    capacity  the greatest length
    last      whether the output is wanted for the last token alone
    """

    capacity: int
    past: int = 0
    fresh: int = 0
    last: bool = True
    kept: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.past + self.fresh

    def reserve(self, capacity: int) -> None:
        """Make room for longer text; what is kept stays."""
        self.capacity = capacity
        for index, (axis, old) in self.kept.items():
            new = _room(old, axis, capacity)
            new.narrow(axis, 0, self.past).copy_(old.narrow(axis, 0, self.past))
            self.kept[index] = axis, new

    def reorder(self, rows: Tensor) -> None:
        """Samples take the places of others, as in beam search."""
        self.kept = {index: (axis, tensor.index_select(0, rows)) for index, (axis, tensor) in self.kept.items()}


def keep(memory: Memory, index: int, axis: int, new: Tensor) -> Tensor:
    """Put new rows behind those kept; returns all rows so far, a view."""
    if index not in memory.kept:
        memory.kept[index] = axis, _room(new, axis, memory.capacity)
    tensor = memory.kept[index][1]
    tensor.narrow(axis, memory.past, memory.fresh).copy_(new)
    return tensor.narrow(axis, 0, memory.total)


def total(memory: Memory) -> int:
    """How many keys there are in this step."""
    return memory.total


def causal(memory: Memory, query: Tensor) -> Tensor:
    """[fresh, total] bool: each new token looks at itself and what is before it."""
    places = torch.arange(memory.total, device=query.device)
    return places <= places[memory.past :, None]


def last_row(memory: Memory, hidden: Tensor) -> Tensor:
    """[B, n, D] → [B, 1, D], where no more is wanted."""
    return hidden[:, -1:] if memory.last else hidden


def _room(like: Tensor, axis: int, capacity: int) -> Tensor:
    shape = list(like.shape)
    shape[axis] = capacity
    return like.new_empty(shape)
