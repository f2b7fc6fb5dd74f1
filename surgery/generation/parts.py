"""Two parts of a decoder's graph: the stream, computed from tokens, and the frame, computed without them.

The frame is what depends on positions, masks and an encoder alone: rotary tables, causal and window masks, learned and
relative positions, the keys and values of an encoder. It is the same at every step, so it is computed once, by the
very nodes of the graph, at the greatest length. The stream is computed for new tokens only. Sizes belong to neither.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, is_op, placeholders
from surgery.bundle.value import Symbols, Value, value_of
from surgery.generation.faults import unfit

TOKENS = ("decoder_input_ids", "input_ids")
LIKE = (aten.ones_like, aten.zeros_like, aten.full_like, aten.empty_like, aten.new_ones, aten.new_zeros, aten.new_full)
SIZE_MODULES = ("_operator", "operator", "math", "builtins", "torch")


@dataclass(frozen=True, eq=False)
class Parts:
    """A decoder's graph, read.

    tokens   the input [B, S] that grows, one column per step
    logits   the output [B, S, V]
    length   S as the graph writes it, e.g. `s1`
    stream   nodes computed from the values of `tokens`, in graph order
    sizes    nodes that are whole numbers
    values   what tensor-valued nodes are, free sizes as text
    """

    graph_module: GraphModule
    tokens: Node
    logits: Node
    length: str
    stream: frozenset[Node]
    sizes: frozenset[Node]
    values: dict[Node, Value]

    def shape(self, node: Node) -> tuple[int | str, ...]:
        found = self.values.get(node)
        return found.shape if isinstance(found, Value) else ()

    def rows(self, node: Node) -> tuple[int, ...]:
        """The axes of a tensor that count the tokens."""
        return tuple(axis for axis, size in enumerate(self.shape(node)) if size == self.length)

    def grows(self, size: int | str) -> bool:
        """Whether a size depends on how many tokens there are."""
        return isinstance(size, str) and re.search(rf"\b{self.length}\b", size) is not None

    def is_frame(self, node: Node) -> bool:
        return node not in self.stream and node not in self.sizes and node.op in ("placeholder", "call_function")


def parts_of(graph_module: GraphModule) -> Parts:
    """Raises RefusalError (S721) for a graph that has no growing input of tokens, or no output for each of them."""
    symbols = Symbols()
    values = {node: value_of(node, symbols) for node in graph_module.graph.nodes if node.op != "output"}
    tokens = _tokens(graph_module, values)
    length = values[tokens].shape[1]
    if not isinstance(length, str) or not length.isidentifier():
        raise unfit(f"the length of `{tokens.target}` is fixed to {length}", tokens)
    sizes = frozenset(_sizes(graph_module))
    stream = frozenset(_stream(graph_module, tokens, sizes))
    logits = _logits(graph_module, values, stream, length)
    return Parts(graph_module, tokens, logits, length, stream, sizes, values)


def _tokens(graph_module: GraphModule, values: dict) -> Node:
    """The input called as such, or the only one [B, S] of whole numbers."""
    inputs = [node for node in placeholders(graph_module) if isinstance(values[node], Value)]
    whole = [node for node in inputs if values[node].dtype is torch.int64 and len(values[node].shape) == 2]
    named = [node for name in TOKENS for node in whole if node.target == name]
    if named or len(whole) == 1:
        return (named or whole)[0]
    raise unfit("none of its inputs is known to be the tokens: call one `input_ids`, [batch, length] of int64")


def _sizes(graph_module: GraphModule) -> Iterable[Node]:
    found: set[Node] = set()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        python = not isinstance(node.target, torch._ops.OpOverload) and node.target.__module__ in SIZE_MODULES
        counts = python and node.all_input_nodes and all(source in found for source in node.all_input_nodes)
        if is_op(node, aten.sym_size) or counts:
            found.add(node)
    return found


def _stream(graph_module: GraphModule, tokens: Node, sizes: frozenset[Node]) -> Iterable[Node]:
    found = {tokens}
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node in sizes or (is_op(node, *LIKE) and node.args[0] is tokens):
            continue
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _logits(graph_module: GraphModule, values: dict, stream: frozenset[Node], length: str) -> Node:
    output = next(node for node in reversed(graph_module.graph.nodes) if node.op == "output")
    for node in pytree.tree_leaves(output.args[0]):
        if not isinstance(node, Node) or node not in stream or not isinstance(values[node], Value):
            continue
        if len(values[node].shape) == 3 and values[node].shape[1] == length and values[node].dtype.is_floating_point:
            return node
    raise unfit("none of its outputs is [batch, length, vocabulary]")
