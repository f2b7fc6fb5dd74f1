"""Sizes of a captured graph as plain numbers: free sizes stand for small ones, each its own."""

from typing import Any

import torch
from torch.fx import Node

from surgery.anatomy.graphs import value


class Sizes:
    """Gives every free size of a graph a small even number, the same wherever it stands."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def number(self, size: int | torch.SymInt) -> int:
        """A size as a number; an expression of free sizes is computed from theirs."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            self.known.setdefault(symbol, 2 + 2 * len(self.known))
        return int(expression.subs(self.known))

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """The shape of a tensor-valued node; None for anything else."""
        fake = value(node)
        return tuple(map(self.number, fake.shape)) if isinstance(fake, torch.Tensor) else None

    def plain(self, argument: Any) -> Any:
        """An argument of a call with sizes as numbers; tensors stay nodes."""
        if isinstance(argument, Node):
            held = value(argument)
            return self.number(held) if isinstance(held, int | torch.SymInt) else argument
        if isinstance(argument, list | tuple):
            return type(argument)(map(self.plain, argument))
        return argument
