"""Quality, controls and size of a rewritten model against the original, measured in one run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs, call, with_batch
from surgery.anatomy.graphs import placeholders, shape
from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel
from surgery.models.checkpoint import require_finite
from surgery.models.data import Data, open_data
from surgery.models.digest import digest
from surgery.session.feeding import as_before
from surgery.session.given import given_data, share_of
from surgery.session.prepare import Prepared, pointing_at
from surgery.session.requirements import CLOCKED, SIZES
from surgery.session.rewrite import choose, phase_of, rewrite
from surgery.targets.context import Context, Progress
from surgery.verify.measurement import BETTER, Measurement
from surgery.verify.outputs import tensors_of
from surgery.verify.quality import STEPS, DiffusionQuality, OutputQuality, TaskQuality, quality
from surgery.verify.size import size

SAMPLES = 500
UNCOMPENSATED = {"compensate": "none"}


@dataclass(frozen=True, eq=False)
class Evidence:
    """Opened data and how quality is measured on it. `reference` opens the data again; None where it was handed over."""

    data: Data
    meter: DiffusionQuality | TaskQuality | OutputQuality
    sha256: str
    reference: str | None
    progress: Progress

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `measure` and a comparison will give."""
        return self.meter.metrics

    @property
    def document(self) -> dict[str, Any]:
        """The data for a report and a manifest: where it came from, and the rows of each part by their hash."""
        parts = {"held_out": self.data.inputs, "calibration": self.data.calibration}
        return {"reference": self.reference, "sha256": self.sha256} | {n: _part(p) for n, p in parts.items()}

    def measure(self, module: Any, name: str) -> Measurement:
        return self.meter.measure(module, lambda done, total: self.progress(f"measuring {name}", done, total))


def _part(inputs: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    return None if not inputs else {"rows": len(next(iter(inputs.values()))), "sha256": digest(inputs)}


def open_evidence(
    prepared: Prepared,
    data: str | Mapping[str, Tensor] | None,
    progress: Progress,
    calibration: str | float | int | None = None,
) -> Evidence:
    """The data of the call, of the spec, of the model, or noise: the first of these there is. `calibration` of its rows
    are kept apart, instead of what the spec says."""
    settings, clause = prepared.settings, prepared.program.data
    named = str(clause.reference) if clause else None
    reference = data or named or prepared.model.default_data or "noise"
    try:
        _refuse_steps(prepared.model, settings.get("steps", 1))
        opened = _opened(reference, prepared, calibration)
        _refuse_fixed(prepared, opened)
    except SurgeryError as error:
        raise pointing_at(error, clause.clause if clause and not data else None) from error
    meter = quality(
        prepared.model,
        opened,
        samples=settings.get("samples", SAMPLES),
        seed=settings.get("seed", 0),
        steps=settings.get("steps", STEPS),
        batch=settings.get("batch"),
    )
    return Evidence(opened, meter, opened.sha256, reference if isinstance(reference, str) else None, progress)


def _opened(
    reference: str | Data | Mapping[str, Tensor], prepared: Prepared, calibration: str | float | int | None
) -> Data:
    if isinstance(reference, Data):
        return reference
    if isinstance(reference, str):
        own = {} if calibration is None else {"calibration": share_of(calibration)}
        return open_data(reference, prepared.model, **prepared.settings | own)
    return given_data(reference, prepared.model, calibration)


def _refuse_steps(model: LoadedModel, steps: int) -> None:
    if model.diffusion and steps > model.diffusion.length:
        raise SurgeryError(
            f"steps={steps}: {model.reference} has {model.diffusion.length} noise levels",
            code="S212",
            help=f"sample in at most {model.diffusion.length} steps; 25 are the default",
        )


def _refuse_fixed(prepared: Prepared, data: Data) -> None:
    """Rows of a size that the graph was not captured for, where it is captured for one alone."""
    for node in placeholders(prepared.anatomy.graph_module):
        given, wanted = data.inputs.get(str(node.target)), shape(node)
        if given is None or wanted is None:
            continue
        pairs = zip(given.shape[1:], wanted[1:], strict=False)
        if any(isinstance(size, int) and size != there for there, size in pairs):
            raise SurgeryError(
                f"`{data.reference}` gives {node.target} as {list(given.shape[1:])} a row, but "
                f"{prepared.model.reference} could be captured only for {list(wanted[1:])}",
                code="S212",
                help=f"write `length={wanted[1]}`, or give example inputs of the size of the data",
            )


def measurable(evidence: Evidence | None, *, timing: bool) -> tuple[str, ...]:
    """The metrics that will be measured, known before any of them is."""
    return (*(evidence.metrics if evidence else ()), *SIZES, *(CLOCKED if timing else ()))


def unmeasured(evidence: Evidence | None, *, timing: bool) -> dict[str, str]:
    """Why a metric will not be measured, where that is a choice of the caller."""
    if evidence is None:
        return dict.fromkeys((*BETTER, "loss", *CLOCKED), "this spec only analyses: the model stays as it is")
    return {} if timing else dict.fromkeys(CLOCKED, "the clock is not looked at: --no-timing or --locked, timing=False")


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


def control_rows(
    prepared: Prepared, evidence: Evidence, before: Measurement, context: Context
) -> list[dict[str, Any]]:
    """Every control of every operation, measured like the model itself: all its works are changed alike.

    What comes behind in a later phase is left out of a control: it would make up for what the control shows.
    """
    rows = []
    kinds = [kind for kind in dict.fromkeys(map(type, prepared.works)) if _controlled(prepared, kind)]
    for kind in kinds:
        first = next(work for work in prepared.works if type(work) is kind)
        for name, changes in first.controls():
            if changes == UNCOMPENSATED and not (context.calibration or prepared.schedule):
                continue  # nothing was compensated: it is this very cut
            measured = evidence.measure(_variant(prepared, first, changes, context), f"control: {name}")
            metrics = dict(measured.metrics) | evidence.meter.compare(before, measured)
            told = name if len(kinds) < 2 else f"{first.options.target.text or first.options.target}: {name}"
            rows.append({"name": told, "metrics": metrics})
    return rows


def _controlled(prepared: Prepared, kind: type) -> bool:
    return any(True for work in prepared.works if type(work) is kind for _ in work.controls())


def _variant(prepared: Prepared, first: Any, changes: dict[str, Any], context: Context) -> nn.Module:
    """The works of one operation with other options; those of others as they are, as far as they do not come behind."""
    kept = [work for work in prepared.works if type(work) is type(first) or phase_of(work) <= phase_of(first)]
    works = [replace(w, options=replace(w.options, **changes)) if type(w) is type(first) else w for w in kept]
    changed = replace(prepared, works=tuple(works))
    choices = choose(changed, context)
    return as_before(changed, choices, rewrite(changed, choices, context))


def size_rows(before: nn.Module, after: GraphModule, inputs: Inputs) -> dict[str, dict[str, int]]:
    """Parameters, bytes, and FLOPs per sample."""
    single = with_batch(inputs, size=2)
    old, new = size(before, single, samples=2), size(after, single, samples=2)
    return {
        name: {"before": getattr(old, name), "after": getattr(new, name)} for name in ("parameters", "bytes", "flops")
    }


def refuse_unsound(prepared: Prepared) -> None:
    """Raise where nothing could be proven: S322 for a model of one batch size, S204 for weights that are not finite,
    S213 for such outputs."""
    model = prepared.model
    fixed = [note for note in prepared.anatomy.notes if "batch is fixed" in note]
    if fixed:
        raise SurgeryError(
            f"{model.reference} runs at one batch size only, and a proof needs several",
            code="S322",
            notes=fixed,
            help="take the number out of forward: write `x.shape[0]`, or -1 in `view` and `reshape`",
        )
    require_finite(model.module.state_dict(), model.reference)
    with torch.no_grad():
        outputs = tensors_of(call(model.module, with_batch(model.example_inputs, at_least=2)))
    if any(output.is_floating_point() and not torch.isfinite(output).all() for output in outputs):
        raise SurgeryError(
            f"the outputs of {model.reference} on its example inputs are not finite",
            code="S213",
            notes=["its weights are"],
            help="give example inputs of the size it was trained on; a float16 model may need bfloat16 or float32",
        )
