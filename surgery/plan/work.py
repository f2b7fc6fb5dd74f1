"""What an operation's `plan` returns: one cut that can describe, choose, make and prove itself."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch.fx import GraphModule

from surgery.anatomy.site import Anatomy
from surgery.plan.action import Action


class Work(Protocol):
    """One cut of one operation.

    `context` is a surgery.targets.context.Context: the diffusion schedule, calibration data, progress, each where there
    is one; `choice` is whatever `choose` returned.
    """

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone: no weights are read."""
        ...

    def choose(self, anatomy: Anatomy, context: Any) -> Any:
        """Look at the weights, and at data, and decide what stays; None where there is nothing to decide."""
        ...

    def passes(self, graph_module: GraphModule, choice: Any, context: Any) -> list[Any]:
        """The rewrite, as passes (see surgery.passes.runner.Pass)."""
        ...

    def reference(self, graph_module: GraphModule, choice: Any, context: Any) -> list[Any]:
        """The slow truth the rewrite must equal, made in another way."""
        ...

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names of controls and the operation's fields they change; may be empty."""
        ...
