"""`by taylor`: how much the loss would change, to first order, if a unit fell silent."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from surgery.anatomy.graphs import aten, attribute, is_op, where
from surgery.diagnostics import RefusalError
from surgery.targets.calibration import Calibration


def taylor(graph_module: GraphModule, calibration: Calibration, layers: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    """The score of every unit [U], for each layer whose input units it is; `layers` gives their features [U, d].

        score_g = mean over rows of |Σ_tokens Σ_(j in g) x_j · ∂loss/∂x_j|,   in float64

    x is what the layer reads, in the original model. Molchanov et al., arXiv:1906.10771, with the sum taken over a
    row's tokens before the modulus, since a unit goes for all of them.
    """
    scores = {layer: torch.zeros(len(units), dtype=torch.float64) for layer, units in layers.items()}
    for inputs, targets in calibration.batches():
        given = calibration.placed(graph_module, inputs)
        read = _read(graph_module, calibration, given, layers, targets)
        for layer, (values, slopes) in read.items():
            rows = next(value.shape[0] for value in given.values() if isinstance(value, Tensor) and value.dim())
            product = (values.detach().double() * slopes.double()).reshape(-1, values.shape[-1])
            per_row = product.reshape(rows if len(product) % rows == 0 else 1, -1, values.shape[-1]).sum(1).cpu()
            scores[layer] += per_row[:, layers[layer]].sum(-1).abs().sum(0) / calibration.rows
    return scores


@torch.enable_grad()
def _read(
    graph_module: GraphModule,
    calibration: Calibration,
    given: Mapping[Node, Any],
    layers: Mapping[Node, Tensor],
    targets: Tensor | None,
) -> dict[Node, tuple[Tensor, Tensor]]:
    """What each layer reads and the gradient of the loss by it: a zero is added there, and told from."""
    values: dict[Node, Any] = dict(given)
    probes: dict[Node, tuple[Tensor, Tensor]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(graph_module, node.target)
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node in layers:
                position = 1 if is_op(node, aten.addmm) else 0
                probe = torch.zeros_like(args[position], requires_grad=True)
                probes[node] = (args[position], probe)
                args = (*args[:position], args[position] + probe, *args[position + 1 :])
            values[node] = node.target(*args, **kwargs)
        elif node.op == "output":
            outputs = map_arg(node.args, values.__getitem__)
    named = {str(node.target): value for node, value in given.items()}
    loss = calibration.loss(outputs, named, targets)
    slopes = torch.autograd.grad(loss, [probe for _, probe in probes.values()], allow_unused=True)
    for node, slope in zip(probes, slopes, strict=True):
        if slope is None:
            raise RefusalError(
                f"`by taylor` cannot rank what {where(node)} reads: the loss does not depend on it",
                code="S323",
                help="rank by effect, or leave this part out with `except`; of several outputs the first is the loss's",
            )
    return {node: (probes[node][0], slope) for node, slope in zip(probes, slopes, strict=True)}
