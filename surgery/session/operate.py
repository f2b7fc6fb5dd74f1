"""The whole path: plan, choose, rewrite, prove, report."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from surgery import __version__
from surgery.anatomy.capture import Inputs
from surgery.diagnostics import SurgeryError
from surgery.passes.runner import Observer
from surgery.session.evidence import (
    Evidence,
    Progress,
    control_rows,
    latency_rows,
    memory_row,
    open_evidence,
    quality_rows,
    refuse_nan,
    silent,
    size_rows,
)
from surgery.session.findings import embeddings_findings, samples_finding
from surgery.session.parity import parity
from surgery.session.prepare import Prepared, SpecLike, prepare
from surgery.session.requirements import judge, refuse_broken
from surgery.session.result import Result
from surgery.session.rewrite import Choices, choose, reference, rewrite
from surgery.targets.choice import Choice

FORMAT = "surgery.report/1"


def compile(
    model: nn.Module | str,
    spec: SpecLike,
    *,
    example_inputs: Inputs | None = None,
    data: str | None = None,
    controls: bool = True,
    timing: bool = True,
    compiled: bool = True,
    after: Observer | None = None,
    progress: Progress = silent,
) -> Result:
    """Operate on a model as a spec says, and prove it.

    model           an nn.Module with `example_inputs`, or a reference such as `zoo:digits-dit`
    spec            text, a file, or a parsed Spec
    example_inputs  a tuple (positional) or dict (keyword) of tensors, the batch first
    data            overrides the spec's data reference
    controls        measure the controls beside it; `timing` latency and memory; `compiled` also under torch.compile
    after           called with each pass and the graph behind it
    progress        called with (stage, done, total); total 0 where it is not known

    Raises SurgeryError for faults of spec, model or plan, UnprovenError where a proof or a `require` does not hold;
    its `report` then holds what was measured. The model given is left as it was.
    """
    prepared = prepare(spec, model, example_inputs=example_inputs)
    return operate(
        prepared, data=data, controls=controls, timing=timing, compiled=compiled, after=after, progress=progress
    )


def apply(
    spec: SpecLike, out: str | os.PathLike[str] | None = None, *, model: str | None = None, **options: Any
) -> Result:
    """`compile` with the spec's own model, and the bundle written to `out`."""
    result = compile(model, spec, **options)
    if out is not None:
        result.save(out)
    return result


def analyze(model: nn.Module | str, spec: SpecLike = "analyze embeddings", **options: Any) -> list[dict[str, Any]]:
    """The findings of a spec's analyses alone."""
    return compile(model, spec, **options).report["findings"]


def operate(
    prepared: Prepared,
    *,
    data: str | None = None,
    controls: bool = True,
    timing: bool = True,
    compiled: bool = True,
    after: Observer | None = None,
    progress: Progress = silent,
) -> Result:
    """The path from a Prepared on; see `compile`."""
    original, inputs = prepared.model.module, prepared.model.example_inputs
    broken = refuse_nan(original, inputs)
    if broken:
        raise SurgeryError(broken, code="S213", help="does the model run on these inputs? are its weights finite?")
    progress("choosing what stays", 0, 0)
    choices = choose(prepared, progress)
    rewritten = rewrite(prepared, choices, after=after)
    document = _document(prepared, choices)
    document["parity"] = parity(rewritten, reference(prepared, choices), inputs) if prepared.works else []
    if prepared.works:
        evidence = open_evidence(prepared, data, progress)
        _measure(document, prepared, evidence, rewritten, controls=controls)
        document["size"] = size_rows(original, rewritten, inputs)
        if timing:
            document["latency"] = latency_rows(original, rewritten, inputs, progress, compiled=compiled)
            document["memory"] = memory_row(original, rewritten, inputs)
    document["findings"] = _findings(prepared, choices) + document["findings"]
    document["requirements"] = judge(prepared.program.requires, document)
    try:
        refuse_broken(document, prepared.program.requires)
    except SurgeryError as error:
        error.report = document
        raise
    return Result(rewritten, prepared.plan, document, _manifest(prepared, document))


def _measure(document: dict, prepared: Prepared, evidence: Evidence, rewritten: GraphModule, *, controls: bool) -> None:
    before = evidence.measure(prepared.model.module, "the original")
    now = evidence.measure(rewritten, "the rewritten model")
    document["data"] = {"reference": evidence.reference, "sha256": evidence.sha256}
    document["quality"] = quality_rows(evidence, before, now)
    document["notes"] += [f"{name} is not measured: {why}" for name, why in now.absent.items()]
    if controls:
        document["controls"] = control_rows(prepared, evidence, before)
    if prepared.model.diffusion:
        found = samples_finding(before, now, prepared.model.diffusion.classes)
        document["findings"] += [found] if found else []


def _findings(prepared: Prepared, choices: Choices) -> list[dict[str, Any]]:
    wanted = any(operation.verb == "analyze" for operation in prepared.program.operations)
    shared = any(choice is not None for choice in choices)
    return embeddings_findings(prepared, choices) if wanted or shared else []


def _document(prepared: Prepared, choices: Choices) -> dict[str, Any]:
    plan = prepared.plan
    settings = prepared.program.data.settings if prepared.program.data else {}
    actions = [_action(action.document(), choice) for action, choice in zip(plan.actions, choices, strict=True)]
    return {
        "format": FORMAT,
        "version": __version__,
        "model": {"reference": plan.model, "fingerprint": plan.fingerprint, "files": dict(prepared.model.files)},
        "spec": plan.spec,
        "seed": settings.get("seed", 0),
        "device": _device(prepared.model.module),
        "selectors": [match.document() for match in plan.matches],
        "actions": actions,
        "criteria": _criteria(choices),
        "parity": [],
        "quality": [],
        "controls": [],
        "size": {},
        "requirements": [],
        "findings": [],
        "notes": list(plan.notes),
        "bundle": None,
    }


def _action(document: dict[str, Any], choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return document
    chosen = {"by": choice.chosen.by, "compensate": choice.chosen.compensate, "kept": choice.keep.tolist()}
    return document | {"choice": document["choice"] | chosen | {"error": choice.chosen.error}}


def _criteria(choices: Choices) -> list[dict[str, Any]]:
    """Candidates of the first cut; other copies are chosen the same way and stand in their actions."""
    first = next((choice for choice in choices if choice is not None), None)
    return [candidate.document(first.chosen) for candidate in first.candidates] if first else []


def _device(module: nn.Module) -> dict[str, Any]:
    tensor = next(module.parameters(), torch.zeros(()))
    on_gpu = tensor.device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name(tensor.device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(tensor.dtype).removeprefix("torch."),
    }


def _processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _manifest(prepared: Prepared, document: dict[str, Any]) -> dict[str, Any]:
    """Where the bundle came from: all that is needed to make it again, and nothing the clock decides."""
    diffusion = prepared.model.diffusion
    return {
        "diffusion": diffusion.document() if diffusion else None,
        "model": document["model"],
        "data": document.get("data"),
        "seed": document["seed"],
        "actions": document["actions"],
        "kernels": [],
        "selectors": document["selectors"],
    }
