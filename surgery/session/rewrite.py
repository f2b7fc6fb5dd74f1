"""The cuts of a prepared spec, chosen and made."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from surgery.lowering import quicken
from surgery.models import LoadedModel
from surgery.models.data import Data
from surgery.operations import Phase
from surgery.passes.joined import joined
from surgery.passes.runner import Observer, run_passes
from surgery.session.learning import seen_by
from surgery.session.matching import asks_match, matched
from surgery.session.prepare import Prepared
from surgery.targets.calibration import BATCH, Calibration, any_length
from surgery.targets.choice import Choice
from surgery.targets.context import Context, Progress, silent
from surgery.targets.learned import Learned

Choices = tuple[Choice | Learned | None, ...]
BEHIND = Phase.SPARSIFY
"""The first phase whose works are chosen on the graph that the cuts leave."""
LOWERED = "masks written out == lowered"


def context_of(prepared: Prepared, data: Data | None = None, progress: Progress = silent) -> Context:
    """What the cuts of a spec are chosen with: its schedule, and what the data holds to calibrate on."""
    return Context(prepared.schedule, _calibration(prepared, data), progress, source=_source(prepared.model))


def choose(prepared: Prepared, context: Context) -> Choices:
    """What each work keeps or learns, and the weights that make up for the rest; None where nothing is to be chosen.

    Cuts are chosen on the graph as captured; what comes behind them (SPARSIFY, HEAL, ..) sees the graph they leave.
    """
    context = context.begun(prepared.anatomy.graph_module)
    choices: list[Any] = [None] * len(prepared.works)
    for index in _in_order(prepared):
        choices[index] = prepared.works[index].choose(prepared.anatomy, context)
    if asks_match(prepared):
        made = tuple(choices)
        choices = list(matched(prepared, made, rewrite(prepared, made, context, until=BEHIND), context.progress))
    for index in _behind(prepared):
        work = prepared.works[index]
        rewritten = partial(_so_far, prepared, tuple(choices), context, index)
        seen = seen_by(prepared, choices, context, rewritten=rewritten)
        choices[index] = work.choose(prepared.anatomy, seen)
    return tuple(choices)


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
    until: Phase | None = None,
) -> GraphModule:
    """The rewritten graph, unproven, quick in eager mode; choices are made where none are given. With `until`, what
    works before that phase leave."""
    context = context or context_of(prepared)
    choices = choose(prepared, context) if choices is None else choices
    cut = _cut(prepared, choices, context, "passes", after)
    places = [index for index in _behind(prepared) if until is None or prepared.works[index].phase < until]
    return quicken(_go_on(cut, prepared, choices, context, places, "passes", after))


def references(
    prepared: Prepared, choices: Choices, rewritten: GraphModule, context: Context | None = None
) -> Iterator[tuple[str, GraphModule, GraphModule]]:
    """What is proven: (what is claimed, the rewritten graph, the slow truth that it must equal), made in another way.

    The cuts against the same values at full size, masked; what comes behind them against masks written out. Healing
    alone claims no equality.
    """
    context, behind = context or context_of(prepared), _behind(prepared)
    if len(behind) < len(prepared.works):
        cut = rewrite(prepared, choices, context, until=BEHIND) if behind else rewritten
        yield "masked == compacted", cut, _cut(prepared, choices, context, "reference", None)
    if any(phase_of(prepared.works[index]) is not Phase.HEAL for index in behind):
        cut = _cut(prepared, choices, context, "passes", None)
        yield LOWERED, rewritten, _go_on(cut, prepared, choices, context, behind, "reference")


def _so_far(prepared: Prepared, choices: Choices, context: Context, index: int) -> GraphModule:
    """The graph that the work at `index` finds."""
    behind = _behind(prepared)
    cut = _cut(prepared, choices, context, "passes", None)
    return _go_on(cut, prepared, choices, context, behind[: behind.index(index)], "passes")


def _cut(
    prepared: Prepared, choices: Choices, context: Context, which: str, after: Observer | None
) -> GraphModule:
    """The graph with its cuts made, all of which were planned on the graph as captured."""
    graph_module = prepared.anatomy.graph_module
    passes = [
        step
        for work, choice in zip(prepared.works, choices, strict=True)
        if phase_of(work) < BEHIND
        for step in getattr(work, which)(graph_module, choice, context)
    ]
    # Every cut was planned on the whole graph: what takes nodes out of it comes last.
    passes.sort(key=lambda step: getattr(step, "late", False))
    return run_passes(graph_module, joined(passes), after=after)


def _go_on(
    graph_module: GraphModule,
    prepared: Prepared,
    choices: Choices,
    context: Context,
    places: list[int],
    which: str,
    after: Observer | None = None,
) -> GraphModule:
    """The graph with further works made one after the other, each on what the one before left."""
    for index in places:
        passes = getattr(prepared.works[index], which)(graph_module, choices[index], context)
        graph_module = run_passes(graph_module, passes, after=after)
    return graph_module


def _behind(prepared: Prepared) -> list[int]:
    """Works that come behind the cuts, by phase, in the spec's order within one."""
    phases = [phase_of(work) for work in prepared.works]
    return sorted((index for index, phase in enumerate(phases) if phase >= BEHIND), key=phases.__getitem__)


def phase_of(work: Any) -> Phase:
    """When a work is made; a work that does not say is a cut."""
    return getattr(work, "phase", Phase.SHRINK)


def _in_order(prepared: Prepared) -> list[int]:
    """Cuts that say what reads them in the graph's order, so that each sees what those before it left; the others first."""
    place = {node: index for index, node in enumerate(prepared.anatomy.graph_module.graph.nodes)}
    first = [place.get(getattr(work, "reader", None), -1) for work in prepared.works]
    cuts = [index for index, work in enumerate(prepared.works) if phase_of(work) < BEHIND]
    return sorted(cuts, key=first.__getitem__)


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
