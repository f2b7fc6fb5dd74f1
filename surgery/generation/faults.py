"""The faults of generation; each code has its page in `diagnostics/codes/`."""

from torch.fx import Node

from surgery.anatomy.graphs import where
from surgery.diagnostics import RefusalError, SurgeryError

STRUCTURE = "S721"
ARGUMENTS = "S722"


def unfit(reason: str, node: Node | None = None) -> RefusalError:
    """A graph that cannot be run token by token, and where in it that shows."""
    place = f"{where(node)}: " if node is not None else ""
    return RefusalError(
        f"this graph cannot generate with a cache: {place}{reason}",
        code=STRUCTURE,
        help="generate with `use_cache=False`, which runs the whole graph for every token",
    )


def wrong(message: str, help: str) -> SurgeryError:
    """Arguments of `generate` that do not fit."""
    return SurgeryError(message, code=ARGUMENTS, help=help)
