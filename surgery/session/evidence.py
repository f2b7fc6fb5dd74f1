"""Quality, controls, size, latency and memory of a rewritten model against the original, measured in one run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs, call, with_batch
from surgery.models.data import open_data
from surgery.session.prepare import Prepared
from surgery.session.rewrite import rewrite
from surgery.verify.measurement import BETTER, Measurement
from surgery.verify.memory import peak_memory
from surgery.verify.quality import STEPS, quality
from surgery.verify.size import size
from surgery.verify.timing import latency

SAMPLES = 500
MEMORY_BATCH = 32
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress of a run nobody watches."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Opened data and how quality is measured on it."""

    meter: Any
    sha256: str
    reference: str
    progress: Progress

    def measure(self, module: Any, name: str) -> Measurement:
        return self.meter.measure(module, lambda done, total: self.progress(f"measuring {name}", done, total))


def open_evidence(prepared: Prepared, data: str | None, progress: Progress) -> Evidence:
    """The data of the spec, of the call, of the model, or noise, in this order of standing: call, spec, model."""
    clause = prepared.program.data
    settings = clause.settings if clause else {}
    reference = data or (str(clause.reference) if clause else None) or prepared.model.default_data or "noise"
    opened = open_data(reference, prepared.model, **settings)
    meter = quality(
        prepared.model,
        opened,
        samples=settings.get("samples", SAMPLES),
        seed=settings.get("seed", 0),
        steps=settings.get("steps", STEPS),
    )
    return Evidence(meter, opened.sha256, reference, progress)


def quality_rows(evidence: Evidence, before: Measurement, after: Measurement) -> list[dict[str, Any]]:
    """A row per metric; what is only a comparison is 0 for the original against itself."""
    same, moved = evidence.meter.compare(before, before), evidence.meter.compare(before, after)
    pairs = {name: (value, after.metrics[name]) for name, value in before.metrics.items() if name in after.metrics}
    pairs |= {name: (same[name], moved[name]) for name in moved}
    return [
        {
            "metric": name,
            "before": old,
            "after": new,
            "better": BETTER[name],
            "spread": None,
            "data": evidence.meter.description,
        }
        for name, (old, new) in pairs.items()
    ]


def control_rows(prepared: Prepared, evidence: Evidence, before: Measurement) -> list[dict[str, Any]]:
    """Every control of every cut, measured like the model itself: all cuts of a clause are changed alike."""
    rows = []
    for name, changes in prepared.works[0].controls() if prepared.works else ():
        measured = evidence.measure(_variant(prepared, changes), f"control: {name}")
        metrics = dict(measured.metrics) | evidence.meter.compare(before, measured)
        rows.append({"name": name, "metrics": metrics})
    return rows


def _variant(prepared: Prepared, changes: dict[str, Any]) -> GraphModule:
    """The cuts with other options; those of another operation than the first stay as they are."""
    kind = type(prepared.works[0])
    works = [replace(w, options=replace(w.options, **changes)) if type(w) is kind else w for w in prepared.works]
    return rewrite(replace(prepared, works=tuple(works)))


def size_rows(before: nn.Module, after: GraphModule, inputs: Inputs) -> dict[str, dict[str, int]]:
    """Parameters, bytes, and FLOPs per sample."""
    single = with_batch(inputs, size=2)
    old, new = size(before, single, samples=2), size(after, single, samples=2)
    return {
        name: {"before": getattr(old, name), "after": getattr(new, name)} for name in ("parameters", "bytes", "flops")
    }


def latency_rows(before: nn.Module, after: GraphModule, inputs: Inputs, progress: Progress, *, compiled: bool) -> list:
    """Interleaved timings of the original and the rewritten model, eager at batch 1 and 32 and compiled at 32."""
    return latency(
        before,
        after,
        lambda batch: with_batch(inputs, size=batch),
        compiled=compiled,
        progress=lambda text: progress(text, 0, 0),
    )


def memory_row(before: nn.Module, after: GraphModule, inputs: Inputs) -> dict[str, Any]:
    """Peak bytes of one forward pass."""
    wide = with_batch(inputs, size=MEMORY_BATCH)
    return {
        "batch": MEMORY_BATCH,
        "before": peak_memory(before, wide),
        "after": peak_memory(after, wide),
        "what": "peak of live tensors in a forward pass, parameters included",
    }


def refuse_nan(module: nn.Module, inputs: Inputs) -> str | None:
    """The reason why a model's outputs prove nothing, or None."""
    from surgery.verify.outputs import tensors_of

    with torch.no_grad():
        outputs = tensors_of(call(module, with_batch(inputs, at_least=2)))
    bad = any(not torch.isfinite(tensor).all() for tensor in outputs if tensor.is_floating_point())
    return "the model's outputs on the example inputs are not finite" if bad else None
