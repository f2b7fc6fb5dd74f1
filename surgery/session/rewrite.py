"""The cuts of a prepared spec, chosen and made."""

from collections.abc import Callable

from torch.fx import GraphModule

from surgery.lowering import quicken
from surgery.passes.runner import Observer, run_passes
from surgery.session.matching import asks_match, matched
from surgery.session.prepare import Prepared
from surgery.targets.choice import Choice

Choices = tuple[Choice | None, ...]


def choose(prepared: Prepared, progress: Callable[[str, int, int], None] | None = None) -> Choices:
    """What each cut keeps, and the weights that make up for the rest; None where nothing is to be chosen."""
    choices = tuple(work.choose(prepared.anatomy, prepared.schedule, progress) for work in prepared.works)
    return matched(prepared, choices, rewrite(prepared, choices), progress) if asks_match(prepared) else choices


def rewrite(prepared: Prepared, choices: Choices | None = None, *, after: Observer | None = None) -> GraphModule:
    """The rewritten graph, unproven, quick in eager mode; choices are made where none are given."""
    return quicken(_run(prepared, choose(prepared) if choices is None else choices, "passes", after))


def reference(prepared: Prepared, choices: Choices) -> GraphModule:
    """The slow truth `rewrite` must equal: the same values at full size, masked."""
    return _run(prepared, choices, "reference", None)


def _run(prepared: Prepared, choices: Choices, which: str, after: Observer | None) -> GraphModule:
    graph_module = prepared.anatomy.graph_module
    passes = [
        step
        for work, choice in zip(prepared.works, choices, strict=True)
        for step in getattr(work, which)(graph_module, choice, prepared.schedule)
    ]
    return run_passes(graph_module, passes, after=after)
