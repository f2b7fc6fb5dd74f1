"""How much a layer does, by which layers are ranked: to the data that passes it, or by the weights it writes with."""

from collections.abc import Callable, Mapping, Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from surgery.anatomy.dimension import ELEMENTWISE
from surgery.anatomy.graphs import attribute, is_layer, is_op, tensor_inputs, weight_of
from surgery.anatomy.stream import RESHAPES, Layer
from surgery.targets.calibration import MASKS
from surgery.targets.context import Context


def similarity(graph_module: GraphModule, pairs: Sequence[tuple[Node, Node]], context: Context) -> Tensor:
    """[pairs] float64: 1 - mean cosine between two places of the stream, over real tokens of the calibration data.

    Of a layer's input and output it is ShortGPT's block influence (Men et al., arXiv:2403.03853): 0 for a layer that
    turns no token.
    """
    return _mean(graph_module, pairs, context, lambda cosine: 1 - cosine)


def angular(graph_module: GraphModule, pairs: Sequence[tuple[Node, Node]], context: Context) -> Tensor:
    """[pairs] float64: the mean angle in units of π, over real tokens.

    Of the input of a layer and the output of one further on it ranks the runs of layers between (Gromov et al.,
    arXiv:2403.17887, who look at the last token alone).
    """
    return _mean(graph_module, pairs, context, lambda cosine: cosine.clamp(-1, 1).arccos() / pi)


def magnitude(graph_module: GraphModule, layers: Sequence[Layer]) -> Tensor:
    """[layers] float64: the norm of all weights that write to the stream: the output projections' of each layer."""
    scores = []
    for layer in layers:
        weights = {weight_of(node).target for node in writers(layer) if weight_of(node) is not None}
        squares = [attribute(graph_module, name).detach().double().square().sum().cpu() for name in sorted(weights)]
        scores.append(torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64))
    return torch.stack(scores)


def writers(layer: Layer) -> list[Node]:
    """The last linears before the stream, through gates, dropout and reshapes."""
    found, seen, todo = [], set(), [layer.exit]
    while todo:
        node = todo.pop()
        if node in seen or node not in layer.inside:
            continue
        seen.add(node)
        if is_layer(node):
            found.append(node)
        elif node.target in ELEMENTWISE or is_op(node, *RESHAPES) or node is layer.exit:
            todo.extend(source for source in tensor_inputs(node) if len(source.meta["val"].shape) > 1)
    return sorted(found)


@torch.no_grad()
def _mean(
    graph_module: GraphModule, pairs: Sequence[tuple[Node, Node]], context: Context, of: Callable[[Tensor], Tensor]
) -> Tensor:
    data = context.calibration
    sums, count = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.float64)
    done = 0
    for inputs in data:
        given = data.placed(graph_module, inputs)
        done += len(next(value for value in given.values() if isinstance(value, Tensor)))
        for place, (one, other) in enumerate(_streamed(graph_module, pairs, given)):
            values = of(_cosine(one, other))
            real = _real(values, inputs)
            sums[place] += (values * real).sum().cpu()
            count[place] += real.sum().cpu()
        context.progress("measuring what layers do", done, data.rows)
    return sums / count.clamp_min(1)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """[B, ..] over the last axis; a zero vector has cosine 1 with itself alone."""
    return torch.where((one == other).all(-1), 1.0, F.cosine_similarity(one.double(), other.double(), dim=-1))


def _real(values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Weights of the tokens: 0 for padding, by the mask that has their shape; decoders' masks are theirs."""
    for name in reversed(MASKS):
        mask = inputs.get(name)
        if isinstance(mask, Tensor) and mask.shape == values.shape:
            return (mask != 0).to(values)
    return torch.ones_like(values)


def _streamed(
    graph_module: GraphModule, pairs: Sequence[tuple[Node, Node]], given: Mapping[Node, Any]
) -> list[tuple[Tensor, Tensor]]:
    """The values of each pair of nodes, as one pass over the graph computes them; no value is held longer than it is
    read."""
    wanted = {node for pair in pairs for node in pair}
    last: dict[Node, Node] = {}
    nodes = list(graph_module.graph.nodes)
    for node in nodes:
        last |= dict.fromkeys(node.all_input_nodes, node)
    values: dict[Node, Any] = {}
    for node in nodes:
        if node.op == "output":
            break
        values[node] = _value(graph_module, node, values, given)
        for source in [source for source in node.all_input_nodes if last[source] is node and source not in wanted]:
            values.pop(source, None)
    return [(values[one], values[other]) for one, other in pairs]


def _value(graph_module: GraphModule, node: Node, values: Mapping[Node, Any], given: Mapping[Node, Any]) -> Any:
    if node.op == "placeholder":
        return given[node]
    if node.op == "get_attr":
        return attribute(graph_module, node.target)
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)
