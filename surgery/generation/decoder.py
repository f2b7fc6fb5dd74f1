"""A captured decoder, run token by token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from surgery.generation.faults import wrong
from surgery.generation.frame import frame_of
from surgery.generation.inputs import inputs_at
from surgery.generation.parts import Parts, parts_of
from surgery.generation.session import Memory
from surgery.generation.step import ROWS, Cut, Step, step_of
from surgery.lowering import quicken

KEY = "_decoder"


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder's graph in two: `frame` is computed once for a text, `step` once for each token.

    Both are made of the graph's own nodes and tensors: no weight is held twice, and whatever was cut, layer by layer,
    stays cut. The keys and values of a layer take the room of the heads it has left.
    """

    parts: Parts
    frame: GraphModule
    frame_inputs: tuple[str, ...]
    step: Step

    def start(self, given: Mapping[str, Any], rows: int, capacity: int, *, exact: bool = True) -> "Text":
        """Begin a batch of `rows` texts with room for `capacity` tokens. `given` are the other inputs of the prompt.

        A model whose positions end before is refused at the first token, or, if not `exact`, at its last position.
        """
        return Text(self, dict(given), rows, capacity, exact)


def decoder_of(graph_module: GraphModule) -> Decoder:
    """The decoder in a graph, proven; kept with the graph. Raises RefusalError (S721), which names the place."""
    from surgery.generation.proof import prove

    found = graph_module.__dict__.get(KEY)
    if found is None:
        found = made(parts_of(graph_module))
        prove(found)
        graph_module.__dict__[KEY] = found
    return found


def made(parts: Parts) -> Decoder:
    """The same, unproven."""
    step = step_of(parts)
    frame, names = frame_of(parts, step)
    return Decoder(parts, quicken(frame), names, Step(quicken(step.module), step.cuts, step.sizes))


class Text:
    """A batch of texts as they grow."""

    def __init__(self, decoder: Decoder, given: dict[str, Any], rows: int, capacity: int, exact: bool) -> None:
        self.decoder, self.given, self.rows, self.exact = decoder, given, rows, exact
        self.memory = Memory(capacity)
        self.frame: list[Any] = []

    @property
    def past(self) -> int:
        return self.memory.past

    def read(self, tokens: Tensor, *, last: bool = True) -> Tensor:
        """Logits [B, n, V] behind n more tokens [B, n], or [B, 1, V] of the `last`. Raises SurgeryError (S722)."""
        memory, step = self.memory, self.decoder.step
        memory.fresh, memory.last = tokens.shape[1], last
        if memory.total > memory.capacity:
            memory.reserve(max(memory.total, 2 * memory.capacity))
            self.frame = []
        if not self.frame:
            self.frame = self._frame(tokens)
        cuts = [self._cut(cut, value) for cut, value in zip(step.cuts, self.frame, strict=False)]
        with torch.no_grad():
            logits = step.module(memory, tokens, *cuts, *self.frame[len(cuts) :])
        memory.past = memory.total
        memory.fresh = 0
        return logits[:, -1:] if last else logits

    def reorder(self, rows: Tensor) -> None:
        """Texts take the places of others, as in beam search; rows is [B] of int64."""
        self.memory.reorder(rows)
        self.given = {
            name: value.index_select(0, rows) if isinstance(value, Tensor) and len(value) == self.rows else value
            for name, value in self.given.items()
        }
        self.frame = []

    def _frame(self, tokens: Tensor) -> list[Any]:
        """The frame at the greatest length, or as near to it as the model's positions go."""
        memory = self.memory
        while True:
            try:
                return self._frame_at(tokens, memory.capacity)
            except (IndexError, RuntimeError) as error:
                if self.exact or memory.capacity == memory.total:
                    raise wrong(
                        f"the model cannot be run at length {memory.capacity}: {str(error).splitlines()[0]}",
                        "ask for fewer new tokens, or give a shorter prompt",
                    ) from error
                memory.reserve(memory.total + (memory.capacity - memory.total) // 2)

    def _frame_at(self, tokens: Tensor, length: int) -> list[Any]:
        inputs = inputs_at(self.decoder.parts, self.given, tokens.new_zeros(self.rows, length), length)
        with torch.no_grad():
            return pytree.tree_leaves(self.decoder.frame(**{name: inputs[name] for name in self.decoder.frame_inputs}))

    def _cut(self, cut: Cut, value: Tensor) -> Tensor:
        for axis, role in cut.axes:
            memory = self.memory
            start, size = (memory.past, memory.fresh) if role == ROWS else (0, memory.total)
            value = value.narrow(axis, start, size)
        return value

