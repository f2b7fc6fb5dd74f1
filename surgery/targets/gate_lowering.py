"""Which gated sites run as one call of surgery::gated_attention: those where it measured faster, at the data's own shape."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from surgery.anatomy.attention_form import AttentionForm
from surgery.anatomy.graphs import placeholders
from surgery.passes.gate_edges import LOWERED
from surgery.targets.context import Context
from surgery.targets.gate_training import normalize_of

PLAIN = "written out"


def lowering(
    graph_module: GraphModule, forms: Mapping[str, list[AttentionForm]], operation: Any, context: Context
) -> dict[str, str]:
    """By path a sentence that begins with what the site runs as."""
    reasons = {path: _obstacle(found, operation) for path, found in forms.items()}
    found = {path: f"{PLAIN}: {reason}" for path, reason in reasons.items() if reason}
    able = {path: forms[path] for path in forms if path not in found}
    if able:
        context.progress("measuring gated attention", 0, 0)
        operands = _operands(graph_module, [each[0] for each in able.values()], context)
        for path, (form, *_) in able.items():
            found[path] = _measured(form, operands)
    return {path: found[path] for path in forms}


def _obstacle(forms: list[AttentionForm], operation: Any) -> str:
    """Why a site cannot be one call; "" where it can."""
    if normalize_of(operation) != "all":
        return "normalize=kept has no kernel"
    if any(not form.fused for form in forms):
        return "the model writes its attention out"
    if any(form.mask is not None for form in forms):
        return "the kernel takes no mask of queries and keys"
    if any(form.causal and not form.square for form in forms):
        return "it is causal with queries and keys of two lengths"
    return "" if all(len(form.heads) == 1 for form in forms) else "its heads stand on several axes"


def _measured(form: AttentionForm, operands: Mapping[Node, Tensor]) -> str:
    from surgery.lowering.sites import choose_gated

    q, k, v = (operands[node] for node in (form.query, form.key, form.value))
    decision = choose_gated(q, k, v, scale=form.scale, causal=form.causal)
    shape = f"at [{', '.join(map(str, q.shape))}]"
    return f"{LOWERED if decision.sparse else PLAIN}: {decision.reason} {shape}"


def _operands(graph_module: GraphModule, forms: list[AttentionForm], context: Context) -> dict[Node, Tensor]:
    """Queries, keys and values of one batch of the calibration data."""
    wanted = {node for form in forms for node in (form.query, form.key, form.value)}
    watch = _Watch(graph_module, wanted)
    placed = context.calibration.placed(graph_module, next(iter(context.calibration)))
    watch.run(*(placed[node] for node in placeholders(graph_module)), enable_io_processing=False)
    return watch.seen


class _Watch(Interpreter):
    def __init__(self, graph_module: GraphModule, wanted: set[Node]) -> None:
        super().__init__(graph_module)
        self.wanted, self.seen = wanted, {}

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.seen[n] = value
        return value
