"""Which labels turned out to be the same: a union-find over arrays."""

import torch
from torch import Tensor

FREE = -1
"""The label of what belongs to no unit and is never cut."""


def once(labels: Tensor) -> Tensor:
    """Axes along which labels are one and the same place in memory, with that place alone: 1 · n · 1 of b · n · t."""
    for axis, stride in enumerate(labels.stride()):
        labels = labels if stride else labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels, held once along every axis along which they are alike."""
    small = once(labels)
    for axis in range(small.dim()):
        first = small.narrow(axis, 0, min(1, small.shape[axis]))
        small = first if bool((small == first).all()) else small
    return small.expand(labels.shape)


def either(first: Tensor, second: Tensor) -> Tensor:
    """The labels of the first, those of the second where it has none."""
    one, two = once(first), once(second)
    return torch.where(one < 0, two, one).expand(torch.broadcast_shapes(first.shape, second.shape))


class Union:
    """Labels 0 … n-1, merged as they are found to be cut together. The smallest of a group stands for it."""

    def __init__(self) -> None:
        self.parent = torch.empty(0, dtype=torch.int64)
        self.merges = 0

    def new(self, count: int) -> Tensor:
        """`count` fresh labels."""
        first = len(self.parent)
        fresh = torch.arange(first, first + count)
        self.parent = torch.cat([self.parent, fresh])
        return fresh

    def find(self, labels: Tensor) -> Tensor:
        """The label that stands for each; FREE stays FREE."""
        held = once(labels)
        while True:
            up = torch.where(held < 0, held, self.parent[held.clamp(min=0)])
            if torch.equal(up, held):
                return held.expand(labels.shape)
            held = up

    def unify(self, first: Tensor, second: Tensor) -> None:
        """Element by element the two are one, wherever both are labels."""
        pairs = self._distinct(*torch.broadcast_tensors(once(first), once(second)))
        while True:
            one, two = self.find(pairs[0]), self.find(pairs[1])
            apart = one != two
            if not apart.any():
                return
            low, high = torch.minimum(one, two)[apart], torch.maximum(one, two)[apart]
            self.parent.scatter_reduce_(0, high, low, "amin")
            self.merges += 1

    def _distinct(self, first: Tensor, second: Tensor) -> Tensor:
        """The pairs of different labels, each once, [2, n]. One number stands for a pair: sorting columns is slow."""
        apart = (first != second) & (first >= 0) & (second >= 0)
        count = len(self.parent)
        keys = torch.unique(first[apart] * count + second[apart])
        return torch.stack((keys // max(count, 1), keys % max(count, 1)))

    def along(self, labels: Tensor, axis: int) -> Tensor:
        """All labels along an axis are one; the labels without that axis."""
        held = once(labels)
        first = held.amax(axis, keepdim=True)
        self.unify(held, first)
        return self.find(first.expand(labels.narrow(axis, 0, 1).shape).squeeze(axis))
