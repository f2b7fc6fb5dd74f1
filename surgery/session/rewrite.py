"""The cuts of a prepared spec, chosen and made."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from surgery.lowering import quicken
from surgery.models import LoadedModel
from surgery.models.data import Data
from surgery.passes.runner import Observer, run_passes
from surgery.session.matching import asks_match, matched
from surgery.session.prepare import Prepared
from surgery.targets.calibration import BATCH, Calibration, any_length
from surgery.targets.choice import Choice
from surgery.targets.context import Context, Progress, silent

Choices = tuple[Choice | None, ...]


def context_of(prepared: Prepared, data: Data | None = None, progress: Progress = silent) -> Context:
    """What the cuts of a spec are chosen with: its schedule, and what the data holds to calibrate on."""
    return Context(prepared.schedule, _calibration(prepared, data), progress, source=_source(prepared.model))


def choose(prepared: Prepared, context: Context) -> Choices:
    """What each cut keeps, and the weights that make up for the rest; None where nothing is to be chosen."""
    context = context.begun(prepared.anatomy.graph_module)
    choices: list[Choice | None] = [None] * len(prepared.works)
    for index in _in_order(prepared):
        choices[index] = prepared.works[index].choose(prepared.anatomy, context)
    choices = tuple(choices)
    if not asks_match(prepared):
        return choices
    return matched(prepared, choices, rewrite(prepared, choices, context), context.progress)


def settled(prepared: Prepared, choices: Choices) -> Prepared:
    """The same with sizes that were known only when units were chosen, in plan and report alike."""
    pairs = zip(prepared.works, choices, strict=True)
    works = tuple(work.settle(choice) if hasattr(work, "settle") and choice else work for work, choice in pairs)
    return replace(prepared, works=works)


def rewrite(
    prepared: Prepared,
    choices: Choices | None = None,
    context: Context | None = None,
    *,
    after: Observer | None = None,
) -> GraphModule:
    """The rewritten graph, unproven, quick in eager mode; choices are made where none are given."""
    context = context or context_of(prepared)
    return quicken(_run(prepared, choose(prepared, context) if choices is None else choices, context, "passes", after))


def reference(prepared: Prepared, choices: Choices, context: Context | None = None) -> GraphModule:
    """The slow truth `rewrite` must equal: the same values at full size, masked."""
    return _run(prepared, choices, context or context_of(prepared), "reference", None)


def _run(
    prepared: Prepared, choices: Choices, context: Context, which: str, after: Observer | None
) -> GraphModule:
    graph_module = prepared.anatomy.graph_module
    passes = [
        step
        for work, choice in zip(prepared.works, choices, strict=True)
        for step in getattr(work, which)(graph_module, choice, context)
    ]
    # Every cut was planned on the whole graph: what takes nodes out of it comes last.
    passes.sort(key=lambda step: getattr(step, "late", False))
    return run_passes(graph_module, passes, after=after)


def _in_order(prepared: Prepared) -> list[int]:
    """Cuts that say what reads them in the graph's order, so that each sees what those before it left; the others first."""
    place = {node: index for index, node in enumerate(prepared.anatomy.graph_module.graph.nodes)}
    first = [place.get(getattr(work, "reader", None), -1) for work in prepared.works]
    return sorted(range(len(first)), key=first.__getitem__)


def _source(model: LoadedModel) -> Mapping[str, Any]:
    """What the model brings beside its weights; of a module given from Python its own `config`, where it has one."""
    config = getattr(model.module, "config", None)
    told = config.to_dict() if hasattr(config, "to_dict") else {}
    return model.source or {"config": told}


def _calibration(prepared: Prepared, data: Data | None) -> Calibration | None:
    inputs = data.calibration if data else None
    if not inputs:
        return None
    named = prepared.model.example_inputs
    options: Mapping[str, Any] = named if isinstance(named, Mapping) else {}
    plain = {name: None if isinstance(value, Tensor) else value for name, value in options.items()}
    rows = len(next(iter(inputs.values())))
    return Calibration(
        inputs,
        plain,
        data.task,
        data.calibration_targets,
        free=any_length(prepared.anatomy.graph_module),
        batch=max(1, min(BATCH, rows // 8)),
    )
