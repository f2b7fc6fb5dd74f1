"""The line of a model's code that made a node: found when a message asks for it, by tracing once more.

To note it for every node while a graph is captured takes torch a seventh of the time, and few ever ask.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule, config
from torch.nn import Module

from surgery.diagnostics import CaptureError

LINES = "lines"
"""The meta key under which a captured graph keeps them."""
SWITCH = "do_not_emit_stack_traces"


class Lines:
    """Of a captured graph and its copies, as long as the model is there."""

    def __init__(self, trace: Callable[..., GraphModule] | None = None, model: Module | None = None, *inputs: Any):
        """`trace(model, *inputs)` gives the graph again, with the same names."""
        self.trace, self.inputs = trace, inputs
        self.model = weakref.ref(model) if model is not None else None
        self.found: dict[str, str] | None = None

    def __reduce__(self) -> tuple:
        return Lines, ()

    def of(self, name: str) -> str:
        """The stack of calls, as Python prints it, that made the node of this name; "" where it is not known."""
        if self.found is None:
            self.found = self._traced()
        return self.found.get(name, "")

    def _traced(self) -> dict[str, str]:
        model = self.model() if self.model else None
        if model is None:
            return {}
        try:
            graph_module = self.trace(model, *self.inputs)
        except CaptureError:
            return {}
        return {node.name: node.meta.get("stack_trace") or "" for node in graph_module.graph.nodes}


@contextmanager
def without_lines() -> Iterator[None]:
    """Inside, torch notes no lines while it traces."""
    before = getattr(config, SWITCH, False)
    setattr(config, SWITCH, True)
    try:
        yield
    finally:
        setattr(config, SWITCH, before)
