"""masked == compacted: the rewritten graph against the slow truth it must equal."""

from typing import Any

import torch
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs, call, with_batch
from surgery.verify.outputs import tensors_of

BATCHES = (2, 5)
TOLERANCES = {
    torch.float64: (1e-12, "float64 keeps 53 bits; sums over fewer terms are rounded in another order"),
    torch.float32: (
        1e-5,
        "float32 keeps 24 bits; sums over fewer terms are rounded in another order, layer after layer",
    ),
    torch.float16: (5e-3, "float16 keeps 11 bits; one unit in the last place is 1e-3, and layers add up"),
    torch.bfloat16: (3e-2, "bfloat16 keeps 8 bits; one unit in the last place is 8e-3, and layers add up"),
}
"""Largest difference over largest output, per dtype, and why it is not zero."""


@torch.no_grad()
def parity(
    rewritten: GraphModule, reference: GraphModule, inputs: Inputs, what: str = "masked == compacted"
) -> list[dict[str, Any]]:
    """One row per batch size: the largest difference between the two graphs' outputs, absolute and relative to the
    largest output. NaN never holds."""
    return [_row(rewritten, reference, with_batch(inputs, size=batch), batch, what) for batch in _batches(rewritten)]


def _batches(graph_module: GraphModule) -> tuple[int, ...]:
    fixed = any("batch is fixed" in note for note in graph_module.meta.get("notes", ()))
    return BATCHES[:1] if fixed else BATCHES


def _row(rewritten: GraphModule, reference: GraphModule, inputs: Inputs, batch: int, what: str) -> dict[str, Any]:
    ours, theirs = _outputs(rewritten, inputs), _outputs(reference, inputs)
    dtype = next((output.dtype for output in ours if output.is_floating_point()), torch.float32)
    tolerance, why = TOLERANCES[dtype]
    differences = [(a.double() - b.double()).abs().max() for a, b in zip(ours, theirs, strict=True)]
    largest = float(torch.stack(differences).max())  # NaN anywhere is NaN here
    scale = max(float(output.double().abs().max()) for output in theirs)
    relative = largest / scale if scale else largest
    return {
        "what": what,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "max_abs": largest,
        "max_rel": relative,
        "tolerance": tolerance,
        "why": why,
        "holds": bool(relative <= tolerance),
    }


def _outputs(graph_module: GraphModule, inputs: Inputs) -> list[torch.Tensor]:
    return [output for output in tensors_of(call(graph_module, inputs)) if output.numel()]
