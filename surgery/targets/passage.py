"""Calibration data on its way through the original network and the cut one, side by side, layer by layer.

Both are the same graph; in the cut one layers already dealt with have other weights, zero where units are gone, and
blocks that go hand on what they are given. Of each batch only the values that are still to be read are held, so that every layer is computed once however many sites
there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from surgery.anatomy.graphs import ancestors, aten, attribute, is_op
from surgery.targets.calibration import MASKS, Calibration

SAME = (aten.dropout, aten.view, aten.reshape, aten._unsafe_view, aten.clone, aten.contiguous, aten.to, aten.alias)
"""Operations that hand on what a layer says, number by number."""


@dataclass(eq=False)
class Batch:
    """Values still to be read, of the original and of the cut network; `theirs` is None as long as they are the same.
    `masks` by input name: which tokens are real [rows · length] bool."""

    ours: dict[Node, Any]
    masks: dict[str, Tensor]
    theirs: dict[Node, Any] | None = None


@dataclass(eq=False)
class Passage:
    """`at` moves on to a layer and tells what it reads; `change` gives it other weights in the cut network, `bypass`
    leaves out all between two nodes there.

    Layers are asked for in the graph's order; going back starts again from the inputs.
    """

    graph_module: GraphModule
    calibration: Calibration
    place: int = 0
    batches: list[Batch] = field(default_factory=list)
    changed: dict[Node, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    bypassed: dict[Node, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = list(self.graph_module.graph.nodes)
        self.order = {node: place for place, node in enumerate(self.nodes)}
        self.last = {node: max(map(self.order.__getitem__, node.users), default=-1) for node in self.nodes}
        self._begin()

    def change(self, layer: Node, weight: Tensor, bias: Tensor | None) -> None:
        """From here on the cut network's layer has this weight and bias, as the graph stores them, at full size."""
        self.changed[layer] = (weight, bias)

    def bypass(self, entry: Node, exit: Node) -> None:
        """In the cut network `exit` is what `entry` is. To be told before the passage gets there."""
        self.bypassed[exit] = entry
        self.last[entry] = max(self.last[entry], self.order[exit])

    @torch.no_grad()
    def at(self, layer: Node) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Per batch: what the cut network's layer reads, rows [r, D] of real tokens, and the drift [r, M]: how much
        more the original says there than the uncut layer in the cut network; None where nothing was cut before."""
        if self.order[layer] < self.place:
            self._begin()
        until = self.order[layer]
        for batch in self.batches:
            self._advance(batch, until)
        self.place = until
        mask = _mask_of(layer)
        for batch in self.batches:
            yield self._rows(batch, layer, batch.masks.get(mask))

    @torch.no_grad()
    def power(self, layer: Node) -> float:
        """The variance of the stream behind a layer that was just asked for, in the original network, in float64."""
        mask = _mask_of(layer)
        rows = [_flat(self._said(batch.ours, layer), batch.masks.get(mask)) for batch in self.batches]
        count = sum(map(len, rows))
        mean = sum(each.sum(0) for each in rows) / count
        return max(float(sum((each - mean).square().sum() for each in rows)) / count, 1e-300)

    def _begin(self) -> None:
        given = [self.calibration.placed(self.graph_module, inputs) for inputs in self.calibration]
        self.place, self.batches = 0, [Batch(values, _masks(values)) for values in given]

    def _advance(self, batch: Batch, until: int) -> None:
        for node in self.nodes[self.place : until]:
            if batch.theirs is None and (node in self.changed or node in self.bypassed):
                batch.theirs = dict(batch.ours)
            if batch.theirs is not None and node in self.bypassed:
                batch.theirs[node] = batch.theirs[self.bypassed[node]]
            elif batch.theirs is not None:
                self._step(batch.theirs, node, self.changed.get(node))
            self._step(batch.ours, node, None)
        for values in (batch.ours, batch.theirs or {}):
            for node in [node for node in values if self.last[node] < until]:
                del values[node]

    def _step(self, values: dict[Node, Any], node: Node, changed: tuple[Tensor, Tensor | None] | None) -> None:
        if node.op == "call_function":
            values[node] = self._call(values, node, changed)

    def _call(self, values: dict[Node, Any], node: Node, changed: tuple[Tensor, Tensor | None] | None = None) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: self._value(values, source))
        if changed is not None:
            args = _with_weights(node, args, *changed)
        return node.target(*args, **kwargs)

    def _value(self, values: dict[Node, Any], node: Node) -> Any:
        return attribute(self.graph_module, node.target) if node.op == "get_attr" else values[node]

    def _rows(self, batch: Batch, layer: Node, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        source = layer.args[1 if is_op(layer, aten.addmm) else 0]
        if batch.theirs is None:
            return _flat(batch.ours[source], real), None
        drift = self._said(batch.ours, layer) - self._said(batch.theirs, layer)
        return _flat(batch.theirs[source], real), _flat(drift, real)

    def _said(self, values: dict[Node, Any], layer: Node) -> Tensor:
        """What the residual stream holds behind the layer; the layer's own output where no sum follows."""
        held = dict(values)
        at = held[layer] = self._call(held, layer)
        node = layer
        for _ in range(6):
            users = list(node.users)
            if len(users) != 1:
                break
            (node,) = users
            if is_op(node, aten.add) and self._known(held, node):
                return self._call(held, node).double().reshape(at.shape)
            if not is_op(node, *SAME) or not self._known(held, node):
                break
            held[node] = self._call(held, node)
        return at.double()

    def _known(self, held: dict[Node, Any], node: Node) -> bool:
        return all(source.op == "get_attr" or source in held for source in node.all_input_nodes)


def _masks(values: dict[Node, Any]) -> dict[str, Tensor]:
    named = {str(node.target): value for node, value in values.items() if isinstance(value, Tensor)}
    return {name: named[name].flatten() != 0 for name in MASKS if name in named and named[name].dim() == 2}


def _mask_of(layer: Node) -> str:
    """Which input tells of padding where a layer stands: a decoder has its own."""
    names = [str(node.target) for node in ancestors([layer]) if node.op == "placeholder"]
    return MASKS[any(name.startswith("decoder_") for name in names)]


def _flat(value: Tensor, real: Tensor | None) -> Tensor:
    """[.., D] as rows, those of real tokens where as many are told of."""
    rows = value.reshape(-1, value.shape[-1])
    return rows[real] if real is not None and len(real) == len(rows) else rows


def _with_weights(node: Node, args: tuple, weight: Tensor, bias: Tensor | None) -> tuple:
    if is_op(node, aten.addmm):
        return (args[0] if bias is None else bias.to(args[0]), args[1], weight.to(args[2]), *args[3:])
    rest = args[2:] if bias is None else (bias.to(args[1]), *args[3:])
    return (args[0], weight.to(args[1]), *rest)
