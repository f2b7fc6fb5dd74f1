"""What an operation's `plan` returns: one cut that can describe, choose, make and prove itself."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch.fx import GraphModule

from surgery.anatomy.site import Anatomy
from surgery.plan.action import Action


class Work(Protocol):
    """One cut of one operation.

    `schedule` is the model's diffusion schedule, None for other models; `choice` is whatever `choose` returned.
    """

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone: no weights are read."""
        ...

    def choose(self, anatomy: Anatomy, schedule: Any, progress: Any = None) -> Any:
        """Look at the weights and decide what stays; None where there is nothing to decide."""
        ...

    def passes(self, graph_module: GraphModule, choice: Any, schedule: Any) -> list[Any]:
        """The rewrite, as passes (see surgery.passes.runner.Pass)."""
        ...

    def reference(self, graph_module: GraphModule, choice: Any, schedule: Any) -> list[Any]:
        """The slow truth the rewrite must equal, made in another way."""
        ...

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names of controls and the operation's fields they change; may be empty."""
        ...
