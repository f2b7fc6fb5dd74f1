"""Runs passes over a graph: requires, run, ensures, lint, and a mark on every node that changed."""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import attribute
from surgery.diagnostics import SurgeryError
from surgery.passes.graph_copy import copy_graph_module
from surgery.passes.provenance import Provenance, stamp
from surgery.passes.refresh import refresh


class Pass(Protocol):
    """A frozen dataclass whose fields are its options.

    The graph is valid before and after a pass, not necessarily during. `requires` and `ensures` return the reason
    why they do not hold, or None. `run` edits the graph in place, and nothing else.
    """

    name: str
    clause: str
    place: str

    def requires(self, graph_module: GraphModule) -> str | None: ...
    def run(self, graph_module: GraphModule) -> None: ...
    def ensures(self, graph_module: GraphModule) -> str | None: ...


Observer = Callable[[Pass, GraphModule], None]
State = tuple[tuple[str, ...], Tensor | None]


def run_passes(graph_module: GraphModule, passes: Iterable[Pass], *, after: Observer | None = None) -> GraphModule:
    """A rewritten copy of the graph; the graph given is left as it was. `after` sees the graph behind each pass.

    A pass that fails keeps its exception's type, with the clause and its place added as a note.
    """
    rewritten = copy_graph_module(graph_module, runs=False)
    states = _snapshot(rewritten)
    for step in passes:
        try:
            states = _run(rewritten, step, states)
        except Exception as error:
            error.add_note(f"in pass `{step.name}` for `{step.clause}` ({step.place})")
            raise
        if after:
            rewritten.recompile()
            after(step, rewritten)
    rewritten.recompile()
    return rewritten


def _run(graph_module: GraphModule, step: Pass, before: dict[str, State]) -> dict[str, State]:
    """Run one pass and mark what it changed; `before` is the state of every node, as is what comes back."""
    _hold(step, "requires", step.requires(graph_module))
    step.run(graph_module)
    graph_module.graph.lint()
    now = _snapshot(graph_module)
    changed = [node for node in graph_module.graph.nodes if not _same(before.get(node.name), now[node.name])]
    for node in changed:
        _own(node)
    mark = Provenance(step.clause, step.place, step.name)
    for node in [*changed, *refresh(graph_module, changed)]:
        stamp(node, mark)
    _hold(step, "ensures", step.ensures(graph_module))
    return now


def _own(node: Node) -> None:
    """A node a pass made belongs where its first input does."""
    sources = [source for source in node.all_input_nodes if "nn_module_stack" in source.meta]
    if "nn_module_stack" not in node.meta and sources:
        node.meta["nn_module_stack"] = sources[0].meta["nn_module_stack"]


def _hold(step: Pass, what: str, reason: str | None) -> None:
    if reason:
        raise SurgeryError(f"pass `{step.name}` {what}: {reason}", code="S501")


def _snapshot(graph_module: GraphModule) -> dict[str, State]:
    return {node.name: _state(graph_module, node) for node in graph_module.graph.nodes}


def _state(graph_module: GraphModule, node: Node) -> State:
    """What a node does, and the tensor it reads: held, so that no other can take its identity meanwhile."""
    tensor = attribute(graph_module, node.target) if node.op == "get_attr" else None
    return (node.op, str(node.target), str(node.args), str(node.kwargs)), tensor


def _same(before: State | None, now: State) -> bool:
    return before is not None and before[0] == now[0] and before[1] is now[1]
