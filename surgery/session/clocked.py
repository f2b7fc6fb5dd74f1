"""Latency and memory of a rewritten model beside the original, at the size of the data."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.capture import Inputs, call, with_batch
from surgery.lowering import quicken
from surgery.models import LoadedModel
from surgery.models.data import Data
from surgery.passes.graph_copy import copy_graph_module
from surgery.session.decoding import WRITING, decode_rows
from surgery.targets.context import Progress
from surgery.verify.memory import WHAT, peak_memory
from surgery.verify.outputs import tensors_of
from surgery.verify.timing import latency

BATCHES, TASK_BATCHES = (1, 32), (1, 8, 32)
LARGEST = 1 << 30
"""Bytes of outputs in one forward pass; a batch that gives more is not run."""
LONGEST = 4.0
"""Seconds of one forward pass; a batch that takes more is not timed, if one row takes a tenth of that alone."""


TOO_LARGE = "the outputs of batch {} take more than 1 GB, or its pass more than 4 s"


def timed_inputs(model: LoadedModel, data: Data | None) -> Inputs:
    """The first rows of data that has a task, so that a sequence is as long as in use; else the example inputs."""
    example = model.example_inputs
    if data is None or data.task is None or not isinstance(example, Mapping):
        return example
    return {name: _row(value, data.inputs[name]) if name in data.inputs else value for name, value in example.items()}


def latency_rows(
    before: nn.Module,
    after: GraphModule,
    uncut: GraphModule,
    inputs: Inputs,
    progress: Progress,
    *,
    compiled: bool,
    task: str | None = None,
) -> list[dict[str, Any]]:
    """Interleaved timings of the original and the rewritten model, eager at several batch sizes, compiled at the last.

    `uncut` is the captured graph: it says how much of a gain is the cut's own. Rows of a model that writes are of its
    prefill, the whole sequence in one pass, and more rows of its decoding, one token behind the others: `phase` and
    `length` say so.
    """
    wanted = TASK_BATCHES if task else BATCHES
    batches = fitting(before, inputs, wanted)
    rows = latency(
        before,
        after,
        lambda batch: with_batch(inputs, size=batch),
        uncut=quicken(copy_graph_module(uncut)),
        batches=batches,
        compiled=compiled,
        progress=lambda text: progress(text, 0, 0),
    )
    skipped = [{"mode": "eager", "batch": batch, "skipped": TOO_LARGE.format(batch)} for batch in wanted[len(batches) :]]
    rows = [row | _told(inputs, task) for row in rows + skipped]
    return rows + (decode_rows(uncut, after, inputs, batches, progress) if task in WRITING else [])


def memory_row(before: nn.Module, after: GraphModule, inputs: Inputs) -> dict[str, Any]:
    """Peak bytes of one forward pass at batch 32, or the largest smaller one whose outputs fit."""
    batch = fitting(before, inputs, TASK_BATCHES)[-1]
    wide = with_batch(inputs, size=batch)
    return {"batch": batch, "before": peak_memory(before, wide), "after": peak_memory(after, wide), "what": WHAT}


@torch.no_grad()
def fitting(module: nn.Module, inputs: Inputs, batches: tuple[int, ...]) -> tuple[int, ...]:
    """The batch sizes whose outputs stay under 1 GB and that take under 4 s, the first of them in any case."""
    single = with_batch(inputs, size=1)
    outputs = tensors_of(call(module, single))
    size = sum(output.numel() * output.element_size() for output in outputs)
    started = time.perf_counter()
    call(module, single)
    took = time.perf_counter() - started
    most = LONGEST / took if took > LONGEST / 10 else float("inf")
    return tuple(batch for batch in batches if batch == batches[0] or batch * size <= LARGEST and batch <= most)


def _row(example: Any, rows: Tensor) -> Any:
    if not isinstance(example, Tensor):
        return example
    return rows[:2].to(example.device, example.dtype if example.is_floating_point() else None)


def _told(inputs: Inputs, task: str | None) -> dict[str, Any]:
    first = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    if task is None or first is None or first.dim() != 2:
        return {}
    phase = {"phase": "prefill"} if task in WRITING else {}
    return phase | {"length": first.shape[1]}
