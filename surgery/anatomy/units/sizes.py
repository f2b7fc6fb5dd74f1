"""Sizes of a captured graph as plain numbers: free sizes stand for small ones, each its own."""

from typing import Any

import torch
from torch.fx import Node

from surgery.anatomy.graphs import value


class Sizes:
    """Gives every free size of a graph a small even number, the same wherever it stands; one that a division meets
    first (frames of a waveform) its size in the example inputs, as small ones may leave nothing."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}
        self.numbers: dict[Any, int] = {}

    def number(self, size: int | torch.SymInt) -> int:
        """A size as a number; an expression of free sizes is computed from theirs."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self.numbers:
            divided = not expression.is_polynomial(*expression.free_symbols)
            examples = size.node.shape_env.backed_var_to_val if divided else {}
            for symbol in sorted(expression.free_symbols, key=str):
                self.known.setdefault(symbol, int(examples.get(symbol, 2 + 2 * len(self.known))))
            self.numbers[expression] = int(expression.subs(self.known))
        return self.numbers[expression]

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
