"""Which blocks of a list do the same as an earlier one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from surgery.inspection.listing import Listing, Statement


@dataclass(frozen=True)
class Fold:
    """Blocks `first` to `last` of a list do what block `like` does."""

    path: str
    first: int
    last: int
    like: int
    touched: bool

    def __str__(self) -> str:
        span = f"{self.path}.{self.first}" + (f" … {self.path}.{self.last}" if self.last != self.first else "")
        return f"{span}: same as {self.path}.{self.like}" + (", ✂ included" if self.touched else "")


class Repeats:
    """`folds` in the order of the graph; `fold_of(node)` is the fold that hides a node, if one does.

    Only blocks of which something is `shown` count: none is said to be the same as one that nobody sees.
    """

    def __init__(self, listing: Listing, shown: Iterable[Statement]):
        self.listing = listing
        self.shown = {statement.node for statement in shown}
        self.members = self._members()
        self.place = {node: (*key, at) for key, nodes in self.members.items() for at, node in enumerate(nodes)}
        self.folds = [fold for path in listing.blocks.lists for fold in self._folds(path)]
        self._hidden = {
            node: fold
            for fold in self.folds
            for index in range(fold.first, fold.last + 1)
            for node in self.members.get((fold.path, index), ())
        }

    def fold_of(self, node: Node) -> Fold | None:
        return self._hidden.get(node)

    def _members(self) -> dict[tuple[str, int], list[Node]]:
        """The nodes of each block, from where it starts until another block of the list does.

        A block that is called upon once more later (diffusers asks the first one for its embedding) repeats nothing.
        """
        found: dict[tuple[str, int], list[Node]] = {}
        latest: dict[str, int] = {}
        for node in self.listing.seen.nodes:
            block = self.listing.blocks.of(self.listing.owner[node])
            if not block or (block in found and latest[block[0]] != block[1]):
                continue
            latest[block[0]] = block[1]
            found.setdefault(block, []).append(node)
        return found

    def _folds(self, path: str) -> Iterator[Fold]:
        """Runs of neighbouring blocks that repeat the same earlier block."""
        prints = {
            index: self._print(path, index) for index in self.listing.blocks.lists[path] if self._is_shown(path, index)
        }
        models: list[int] = []
        run: Fold | None = None
        for index, printed in prints.items():
            like = next((model for model in models if _alike(prints[model], printed)), None)
            if run and (like != run.like or index != run.last + 1):
                yield run
                run = None
            if like is None:
                models.append(index)
                continue
            run = Fold(path, run.first if run else index, index, like, self._touched(path, like))
        if run:
            yield run

    def _is_shown(self, path: str, index: int) -> bool:
        return any(node in self.shown for node in self.members.get((path, index), ()))

    def _touched(self, path: str, index: int) -> bool:
        return any(self.listing.marks(node) for node in self.members.get((path, index), ()))

    def _print(self, path: str, index: int) -> list[object]:
        """A block as a flat list of facts, with references relative to the block."""
        facts: list[object] = []
        for node in self.members.get((path, index), ()):
            here = f"{path}.{index}"
            facts += [str(node.target), self.listing.owner[node][len(here) :], self.listing.marks(node)]
            facts.append(self.listing.values.text(node))
            for value in (*node.args, *node.kwargs.items()):
                facts.extend(self._facts(value, path, index))
        return facts

    def _facts(self, value: object, path: str, index: int) -> Iterator[object]:
        if isinstance(value, list | tuple):
            yield "("
            for item in value:
                yield from self._facts(item, path, index)
            yield ")"
        elif isinstance(value, Node):
            yield self._reference(self.listing.seen.resolve(value), path, index)
        else:
            yield str(value)

    def _reference(self, node: Node, path: str, index: int) -> tuple[str, object]:
        if node.op == "get_attr":
            tensor = self.listing.tensors.get(str(node.target))
            shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()
            return "weight", (self.listing.name_of(node, f"{path}.{index}"), shape)
        if self.listing.values.size(node):
            return "size", self.listing.values.size(node)
        *block, at = self.place.get(node, ("", -1, 0))
        if block == [path, index]:
            return "inside", at
        if block == [path, index - 1]:
            return "before", at
        return "outside", node.name


def _alike(model: list[object], other: list[object]) -> bool:
    """Equal facts; what the first block takes from outside, a later one may take from the block before it."""
    if len(model) != len(other):
        return False
    stream: dict[object, object] = {}
    for ours, theirs in zip(model, other, strict=True):
        if ours == theirs:
            continue
        if not (_kind(ours) == "outside" and _kind(theirs) == "before"):
            return False
        if stream.setdefault(ours, theirs) != theirs:
            return False
    return True


def _kind(fact: object) -> str:
    return str(fact[0]) if isinstance(fact, tuple) and fact else ""
