"""Is a graph a decoder's? Asked of its values, on a few made-up tokens, before it is run token by token.

Outside attention each row must be computed from its own row: one row is made NaN, and no other may become NaN. In
attention a row must not see later ones: the last token is changed, and what attention gives to earlier rows must stay.
Then the steps, with keys and values kept, must give the logits of the whole graph. The first node that fails is named.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from surgery.anatomy.graphs import placeholders
from surgery.anatomy.placement import device_of
from surgery.bundle.value import Value
from surgery.generation.decoder import Decoder
from surgery.generation.faults import unfit
from surgery.generation.inputs import inputs_at
from surgery.generation.parts import Parts
from surgery.generation.sites import mixes

LENGTH, ROW = 5, 2
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Of the largest value: sums over rows are taken in another order, layer after layer. A wrong row is off by its size."""
Change = Callable[[Node, Tensor], Tensor]


def prove(decoder: Decoder) -> None:
    """Raises RefusalError (S721), naming the first node that is not computed row by row, or sees what comes later."""
    parts = decoder.parts
    tokens, given = example(parts)
    with torch.no_grad():
        plain = _run(parts, given, tokens)
        _refuse_mixing(parts, plain, _run(parts, given, tokens, lambda node, value: _spoiled(parts, node, value)))
        other = tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % int(tokens.max() + 1)
        _refuse_foresight(parts, plain, _run(parts, given, other))
        _refuse_unequal(decoder, plain[parts.logits], tokens, given)


def example(parts: Parts) -> tuple[Tensor, dict[str, Any]]:
    """Tokens [B, 5] and whatever else the graph takes, made up."""
    device = device_of(parts.graph_module)
    words = parts.shape(parts.logits)[-1]
    generator = torch.Generator().manual_seed(0)
    rows = parts.shape(parts.tokens)[0]
    sizes = {parts.length: LENGTH, rows: 2}

    def made(value: Value) -> Tensor:
        shape = [size if isinstance(size, int) else sizes.get(size, 3) for size in value.shape]
        if value.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(value.dtype).to(device)
        return torch.randint(0, 2, shape, generator=generator).to(value.dtype).to(device)

    given = {}
    for node in placeholders(parts.graph_module):
        name, value = str(node.target), parts.values.get(node)
        if isinstance(value, Value) and node is not parts.tokens and not name.endswith("position_ids"):
            given[name] = torch.ones_like(made(value)) if name.endswith("mask") else made(value)
    shape = [rows if isinstance(rows, int) else 2, LENGTH]
    most = words if isinstance(words, int) else 2
    return torch.randint(0, most, shape, generator=generator).to(device), given


def _run(parts: Parts, given: dict[str, Any], tokens: Tensor, change: Change | None = None) -> dict[Node, Tensor]:
    """The values of the stream's nodes that have one axis of tokens."""
    watch = _Watch(parts, change)
    inputs = inputs_at(parts, given, tokens, LENGTH)
    watch.run(*(inputs[str(node.target)] for node in placeholders(parts.graph_module)), enable_io_processing=False)
    return watch.seen


class _Watch(Interpreter):
    def __init__(self, parts: Parts, change: Change | None) -> None:
        super().__init__(parts.graph_module)
        self.parts, self.change, self.seen = parts, change, {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n not in self.parts.stream or not isinstance(value, Tensor) or len(self.parts.rows(n)) != 1:
            return value
        value = self.change(n, value) if self.change else value
        self.seen[n] = value.clone()
        return value


def _spoiled(parts: Parts, node: Node, value: Tensor) -> Tensor:
    """One row is NaN where numbers enter the stream, and behind attention, where all later rows would be."""
    enters = not any(source in parts.stream and _is_real(parts, source) for source in node.all_input_nodes)
    if not value.is_floating_point() or not (enters or mixes(parts, node)):
        return value
    value = value.clone()
    for row in range(LENGTH):
        at = value.select(parts.rows(node)[0], row)
        at.fill_(torch.nan) if row == ROW else at.nan_to_num_()
    return value


def _is_real(parts: Parts, node: Node) -> bool:
    value = parts.values.get(node)
    return not isinstance(value, Value) or value.dtype.is_floating_point


def _refuse_mixing(parts: Parts, plain: dict[Node, Tensor], spoiled: dict[Node, Tensor]) -> None:
    for node, value in plain.items():
        fresh = spoiled[node].isnan() & ~value.isnan()
        axis = parts.rows(node)[0]
        if bool(fresh.movedim(axis, 0)[[row for row in range(LENGTH) if row != ROW]].any()):
            raise unfit(f"`{node.name}` computes a token's row from the rows of others", node)


def _refuse_foresight(parts: Parts, plain: dict[Node, Tensor], other: dict[Node, Tensor]) -> None:
    for node, value in plain.items():
        if mixes(parts, node):
            axis = parts.rows(node)[0]
            earlier = [each.narrow(axis, 0, LENGTH - 1) for each in (value, other[node])]
            if not _close(*earlier):
                raise unfit("it looks at later tokens too", node)


def _refuse_unequal(decoder: Decoder, logits: Tensor, tokens: Tensor, given: dict[str, Any]) -> None:
    text = decoder.start(given, len(tokens), LENGTH)
    for start, end in ((0, LENGTH - 2), (LENGTH - 2, LENGTH - 1), (LENGTH - 1, LENGTH)):
        try:
            found = text.read(tokens[:, start:end], last=False)
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise unfit(f"a step of it cannot be computed: {reason}", decoder.parts.logits) from error
        if not _close(logits[:, start:end], found):
            raise unfit("step by step its logits are others than all at once", decoder.parts.logits)


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, NaN like NaN."""
    rounding = ROUNDING.get(one.dtype, ROUNDING[torch.bfloat16])
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return bool((one - other).abs().max() <= rounding * one.abs().max())
