"""The whole path: plan, choose, rewrite, prove, report."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs
from surgery.operations import Phase
from surgery.passes.runner import Observer
from surgery.session import library
from surgery.session.clocked import latency_rows, memory_row, timed_inputs
from surgery.session.document import manifest, new_report
from surgery.session.evidence import (
    Evidence,
    control_rows,
    measurable,
    open_evidence,
    quality_rows,
    refuse_unsound,
    size_rows,
    unmeasured,
)
from surgery.session.feeding import as_before, fed, files_of
from surgery.session.findings import chosen_for, embeddings_findings, samples_finding
from surgery.session.given import learning_from
from surgery.session.parity import parity
from surgery.session.prepare import Prepared, SpecLike, in_eval_mode, prepare
from surgery.session.requirements import EDGES, judge, refuse_broken, refuse_unmeasurable
from surgery.session.result import Result
from surgery.session.rewrite import LOWERED, Choices, choose, context_of, phase_of, references, rewrite, settled
from surgery.session.search import is_searched, search
from surgery.targets.context import Context, Progress, silent
from surgery.targets.learned import Learned


def compile(
    model: nn.Module | str | None,
    spec: SpecLike,
    *,
    example_inputs: Inputs | None = None,
    data: str | Mapping[str, Tensor] | None = None,
    calibration: str | float | int | None = None,
    controls: bool = True,
    timing: bool = True,
    compiled: bool = True,
    after: Observer | None = None,
    progress: Progress = silent,
    checkpoints: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> Result:
    """Operate on a model as a spec says, and prove it.

    model           an nn.Module with `example_inputs`, or a reference such as `zoo:digits-dit`; None: the spec's own
    spec            text, a file, or a parsed Spec
    example_inputs  a tuple (positional) or dict (keyword) of tensors, the batch first
    data            instead of the spec's: a reference such as `digits`, or the model's inputs by name, [N, ..] each, and
                    `targets` where they are known: int64 [N] classes, or [N, T] at each position of the output, -100
                    where none counts. Of transformers' models that write, the targets are the next ids
    calibration     how many of its rows are learned from and not measured: 0.5, "50%" or 128. Of a mapping none without
                    it: what chooses on data, or trains, has to be given some
    controls        measure the controls beside it; `timing` latency and memory; `compiled` also under torch.compile
    after           called with each pass and the graph behind it
    progress        called with (stage, done, total); total 0 where it is not known
    checkpoints     a folder in which training keeps its state, and goes on from what it finds there
    device          where a model named by a reference is put, calibrated, trained and measured: `cuda`, `cuda:1`

    Raises SurgeryError for faults of spec, model or plan, UnprovenError where a proof or a `require` does not hold;
    its `report` then holds what was measured. The model given is left as it was.
    """
    with in_eval_mode(model), learning_from(data, calibration):
        prepared = prepare(spec, model, example_inputs=example_inputs, device=device)
        return operate(
            prepared,
            data=data,
            calibration=calibration,
            controls=controls,
            timing=timing,
            compiled=compiled,
            after=after,
            progress=progress,
            checkpoints=checkpoints,
        )


def apply(
    spec: SpecLike,
    out: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | str | None = None,
    overwrite: bool = False,
    pt2: bool = False,
    **options: Any,
) -> Result:
    """`compile` with the spec's own model, and the bundle written to `out`, which is refused first if it is taken.

    With `pt2` it also holds `model.pt2`, which `torch.export.load` reads without surgery.
    """
    if out is None:
        return compile(model, spec, **options)
    from surgery.bundle.folder import refuse_existing

    refuse_existing(Path(out), overwrite)
    result = compile(model, spec, **options)
    result.save(out, overwrite=overwrite, pt2=pt2)
    return result


def analyze(model: nn.Module | str, spec: SpecLike = "analyze embeddings", **options: Any) -> list[dict[str, Any]]:
    """The findings of a spec's analyses alone."""
    return compile(model, spec, **options).report["findings"]


def operate(
    prepared: Prepared,
    *,
    data: str | Mapping[str, Tensor] | None = None,
    calibration: str | float | int | None = None,
    controls: bool = True,
    timing: bool = True,
    compiled: bool = True,
    after: Observer | None = None,
    progress: Progress = silent,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Result:
    """The path from a Prepared on; see `compile`. A spec that only analyses changes nothing and measures size alone."""
    original, requires = prepared.model.module, prepared.program.requires
    refuse_unsound(prepared)
    evidence = open_evidence(prepared, data, progress, calibration) if prepared.works else None
    timing = timing and evidence is not None
    counted = (EDGES,) if any(phase_of(work) is Phase.SPARSIFY for work in prepared.works) else ()
    known = (*measurable(evidence, timing=timing), *counted)
    refuse_unmeasurable(requires, known, unmeasured(evidence, timing=timing))
    context = context_of(prepared, evidence.data if evidence else None, progress)
    context = replace(context, checkpoints=Path(checkpoints) if checkpoints else None)
    found = search(prepared, evidence, context) if is_searched(prepared) else None
    progress("choosing what stays", 0, 0)
    prepared = found.chosen.prepared if found else prepared
    choices = found.chosen.choices if found else choose(prepared, context)
    prepared = settled(prepared, choices)
    rewritten = rewrite(prepared, choices, context, after=after)
    report = new_report(prepared, choices) | ({"search": found.document()} if found else {})
    inputs, sized = inputs_of(prepared, choices, evidence)
    report["size"] = size_rows(original, rewritten, sized)
    if evidence:
        for what, ours, theirs in references(prepared, choices, rewritten, context):
            report["parity"] += parity(ours, theirs, inputs, what)
            if what == LOWERED and sized is not inputs:  # a pattern shows at the length it was made for
                report["parity"] += parity(ours, theirs, sized, what, batches=(1,))
        _measure(report, prepared, evidence, as_before(prepared, choices, rewritten), context if controls else None)
    if timing:
        uncut, task = prepared.anatomy.graph_module, evidence.data.task
        report["latency"] = latency_rows(original, rewritten, uncut, sized, progress, compiled=compiled, task=task)
        report["memory"] = memory_row(original, rewritten, sized)
    report["findings"] = _findings(prepared, choices) + report["findings"]
    report["requirements"] = judge(requires, report)
    refuse_broken(report, requires)
    return _result(prepared, choices, rewritten, report)


def inputs_of(prepared: Prepared, choices: Choices, evidence: Evidence | None) -> tuple[Inputs, Inputs]:
    """The example inputs as the rewritten model takes them, and such of the data's length; the same where it has none."""
    example, sized = prepared.model.example_inputs, timed_inputs(prepared.model, evidence.data if evidence else None)
    inputs = fed(prepared, choices, example)
    return inputs, inputs if sized is example else fed(prepared, choices, sized)


def _result(prepared: Prepared, choices: Choices, rewritten: GraphModule, report: dict) -> Result:
    """With what the library the model came from needs to read it, where it can."""
    inputs = fed(prepared, choices, prepared.model.example_inputs)
    stock = library.stock(prepared, choices, rewritten, inputs)
    report["notes"] += [library.note(stock)] if stock else []
    told = manifest(prepared, report) | {"source": library.source(prepared, stock)}
    files = library.files(prepared, choices, stock) | files_of(prepared, choices)
    return Result(rewritten, prepared.plan, report, told, prepared.program.spec, files, stock, inputs)


def _measure(
    report: dict, prepared: Prepared, evidence: Evidence, rewritten: nn.Module, context: Context | None
) -> None:
    """Quality before and after; of the controls too where a context to choose them in is given."""
    before = evidence.measure(prepared.model.module, "the original")
    now = evidence.measure(rewritten, "the rewritten model")
    report["data"] = evidence.document
    report["quality"] = quality_rows(evidence, before, now)
    report["notes"] += [f"{name} is not measured: {why}" for name, why in now.absent.items()]
    if context:
        report["controls"] = control_rows(prepared, evidence, before, context)
    if prepared.model.diffusion:
        found = samples_finding(before, now, prepared.model.diffusion.classes)
        report["findings"] += [found] if found else []


def _findings(prepared: Prepared, choices: Choices) -> list[dict[str, Any]]:
    looked_at = prepared.analyses or chosen_for(prepared, choices)
    found = embeddings_findings(prepared, choices) if looked_at else []
    return found + [dict(one) for choice in choices if isinstance(choice, Learned) for one in choice.findings]
