"""masked == compacted: the rewritten graph against the slow truth it must equal."""

from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.capture import Inputs, call, with_batch
from surgery.anatomy.graphs import placeholders, shape
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
    rewritten: GraphModule,
    reference: GraphModule,
    inputs: Inputs,
    what: str = "masked == compacted",
    batches: tuple[int, ...] = BATCHES,
) -> list[dict[str, Any]]:
    """One row per batch size, and one more at a shorter length where the length is free: the largest difference between
    the two graphs' outputs, absolute and relative to the largest output. NaN never holds."""
    runs = [(batch, inputs) for batch in (batches if len(_batches(rewritten)) > 1 else BATCHES[:1])]
    short = shortened(rewritten, inputs)
    runs += [(batches[0], short)] if short is not None else []
    return [_row(rewritten, reference, with_batch(given, size=batch), batch, what) for batch, given in runs]


def shortened(graph_module: GraphModule, inputs: Inputs) -> Inputs | None:
    """The inputs with every free axis behind the batch at two thirds of its size; None where no axis is free."""
    leaves, form = pytree.tree_flatten(inputs)
    sizes = list(map(shape, placeholders(graph_module)))
    if len(sizes) != len(leaves):
        return None
    batches = {str(size[0]) for size in sizes if size}
    cut = [_shorter(leaf, size or (), batches) for leaf, size in zip(leaves, sizes, strict=True)]
    if all(new is old for new, old in zip(cut, leaves, strict=True)):
        return None
    return pytree.tree_unflatten(cut, form)


def _shorter(leaf: Any, sizes: tuple, batches: set[str]) -> Any:
    for axis, size in enumerate(sizes[1:], 1):
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and str(size) not in batches:
            least = size.node.shape_env.bound_sympy(size.node.expr).lower
            leaf = leaf.narrow(axis, 0, max(int(least), leaf.shape[axis] * 2 // 3, 1))
    return leaf


def _batches(graph_module: GraphModule) -> tuple[int, ...]:
    fixed = any("batch is fixed" in note for note in graph_module.meta.get("notes", ()))
    return BATCHES[:1] if fixed else BATCHES


def _length(inputs: Inputs) -> dict[str, int]:
    """The size of the second axis of the first input that is a sequence: tokens [N, T] or vectors [N, T, D]."""
    found = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    if not found or not (found[0].dim() == 3 or found[0].dim() == 2 and not found[0].is_floating_point()):
        return {}
    return {"length": found[0].shape[1]}


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
        **_length(inputs),
        "max_abs": largest,
        "max_rel": relative,
        "tolerance": tolerance,
        "why": why,
        "holds": bool(relative <= tolerance),
    }


def _outputs(graph_module: GraphModule, inputs: Inputs) -> list[torch.Tensor]:
    return [output for output in tensors_of(call(graph_module, inputs)) if output.numel()]
