"""Remove heads, channels or whatever else is coupled: tensors lose indices, sizes in calls follow."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, attribute, folded, is_op, shape
from surgery.anatomy.units.edits import Edit
from surgery.anatomy.units.producers import CONVOLUTIONS
from surgery.passes.weights import add_tensor, replace_tensor


@dataclass(frozen=True, eq=False)
class CutUnits:
    """before  weights [.., n, ..], sizes as captured      after  weights [.., n', ..], sizes of what is left

    weights     (tensor, axis) → indices kept, ascending
    edits       sizes written into calls
    gathers     (call, operand, axis) → indices kept of an operand that is computed elsewhere
    """

    clause: str
    place: str
    weights: Mapping[tuple[str, int], Tensor]
    edits: tuple[Edit, ...]
    gathers: Mapping[tuple[str, str, int], Tensor] = field(default_factory=dict)
    name: str = "cut-units"

    @cached_property
    def touched(self) -> set[str]:
        """Names of tensors that lose indices, and of calls that are edited."""
        calls = {call for call, _, _ in self.gathers}
        return {name for name, _ in self.weights} | {edit.node for edit in self.edits} | calls

    def with_(self, others: Sequence["CutUnits"]) -> "CutUnits":
        """This cut and others, which touch nothing that it does, in one."""
        every = (self, *others)
        return replace(
            self,
            weights={place: keep for each in every for place, keep in each.weights.items()},
            edits=tuple(edit for each in every for edit in each.edits),
            gathers={place: keep for each in every for place, keep in each.gathers.items()},
        )

    def requires(self, graph_module: GraphModule) -> str | None:
        names = {node.name for node in graph_module.graph.nodes}
        wanted = [edit.node for edit in self.edits] + [
            name for call, operand, _ in self.gathers for name in (call, operand)
        ]
        missing = [name for name in wanted if name not in names]
        if missing:
            return f"no node `{missing[0]}`"
        short = [
            name for (name, axis), keep in self.weights.items() if _size(graph_module, name, axis) <= int(keep.max())
        ]
        return f"`{short[0]}` was cut before" if short else None

    def run(self, graph_module: GraphModule) -> None:
        nodes = {node.name: node for node in graph_module.graph.nodes}
        for (name, axis), keep in self.weights.items():
            tensor = attribute(graph_module, name)
            replace_tensor(graph_module, name, tensor.index_select(axis, keep.to(tensor.device)))
        for edit in self.edits:
            _write(nodes[edit.node], edit)
        for (call, operand, axis), keep in self.gathers.items():
            self._gather(graph_module, nodes[call], nodes[operand], axis, keep)

    def ensures(self, graph_module: GraphModule) -> str | None:
        wrong = [n for (n, axis), keep in self.weights.items() if _size(graph_module, n, axis) != len(keep)]
        return f"`{wrong[0]}` has another size than it should" if wrong else None

    def _gather(self, graph_module: GraphModule, call: Node, operand: Node, axis: int, keep: Tensor) -> None:
        """The call reads the kept part of an operand."""
        graph, like = graph_module.graph, operand.meta["val"]
        if _is_repeated(operand, axis):
            with graph.inserting_before(call):
                part = graph.call_function(aten.expand.default, (operand.args[0], list(operand.args[1])))
            period = folded(like.shape[axis])
            _write(part, Edit(part.name, 1, axis, Fraction(len(keep), period) if period else len(keep)))
            call.replace_input_with(operand, part)
            return
        name = add_tensor(graph_module, "surgery_kept", keep.to(like.device), parameter=False)
        period = folded(like.shape[axis])
        with graph.inserting_before(call):
            index = graph.get_attr(name)
            part, place = operand, axis
            if period:
                part, place = graph.call_function(aten.unflatten.int, (operand, axis, [-1, period])), axis + 1
            part = graph.call_function(aten.index_select.default, (part, place, index))
            if period:
                part = graph.call_function(aten.flatten.using_ints, (part, axis, place))
        call.replace_input_with(operand, part)


@dataclass(frozen=True, eq=False)
class MaskUnits:
    """The slow truth: what the consumers read of removed units is 0, and nothing shrinks.

    masks   consumer → 1 for every input feature that stays, 0 for the others [n]; of a convolution, channels
    """

    clause: str
    place: str
    masks: Mapping[str, Tensor]
    name: str = "mask-units"

    def requires(self, graph_module: GraphModule) -> str | None:
        return None

    def run(self, graph_module: GraphModule) -> None:
        graph = graph_module.graph
        for call in [node for node in graph.nodes if node.name in self.masks]:
            position = 1 if call.target is aten.addmm.default else 0
            source = call.args[position]
            like = source.meta["val"]
            mask = self.masks[call.name].to(like.device, like.dtype)
            if is_op(call, *CONVOLUTIONS):
                mask = mask.reshape(-1, *[1] * (like.dim() - 2))
            name = add_tensor(graph_module, "surgery_mask", mask, parameter=False)
            with graph.inserting_before(call):
                masked = graph.call_function(aten.mul.Tensor, (source, graph.get_attr(name)))
            args = list(call.args)
            args[position] = masked
            call.args = tuple(args)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None


def _is_repeated(operand: Node, axis: int) -> bool:
    """Whether one entry was expanded along an axis: any of them will do."""
    return is_op(operand, aten.expand) and shape(operand.args[0])[axis - operand.meta["val"].dim()] == 1


def _write(node: Node, edit: Edit) -> None:
    args = list(node.args)
    if edit.item is None:
        args[edit.position] = edit.value
    else:
        sizes = list(args[edit.position])
        sizes[edit.item] = _scaled(node, sizes[edit.item], edit.value)
        args[edit.position] = sizes
    node.args = tuple(args)


def _scaled(node: Node, size: int | Node, value: int | Fraction) -> int | Node:
    """The new size; a free one is multiplied and divided in the graph."""
    if not isinstance(value, Fraction):
        return value
    graph = node.graph
    with graph.inserting_before(node):
        times = graph.call_function(operator.mul, (size, value.numerator))
        return graph.call_function(operator.floordiv, (times, value.denominator))


def _size(graph_module: GraphModule, name: str, axis: int) -> int:
    return attribute(graph_module, name).shape[axis]
