"""Which implementation of an operator runs: the first that does not refuse, or the one that was asked for.

`SURGERY_KERNELS=reference|torch|native|triton` asks for one. An explicit request that cannot be met is an error; an
automatic choice goes on to the next.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

VARIABLE = "SURGERY_KERNELS"


@dataclass(frozen=True)
class Backend:
    """An implementation: `refuse` takes what `run` takes and says why it cannot, or None."""

    name: str
    run: Callable[..., Any]
    refuse: Callable[..., str | None]


def never(*args: Any, **kwargs: Any) -> str | None:
    """The refusal of an implementation that takes everything."""
    return None


def choose_backend(operator: str, backends: Sequence[Backend], *args: Any, **kwargs: Any) -> Backend:
    """The backend that will run. Raises RuntimeError with every refusal if none can, or the asked-for one cannot."""
    wanted = os.environ.get(VARIABLE)
    refusals = []
    for backend in backends:
        if wanted and backend.name != wanted:
            continue
        reason = backend.refuse(*args, **kwargs)
        if reason is None:
            return backend
        refusals.append(f"{backend.name}: {reason}")
    asked = f" ({VARIABLE}={wanted})" if wanted else ""
    here = ", ".join(backend.name for backend in backends)
    why = "; ".join(refusals) or f"not one of {here}"
    raise RuntimeError(f"no kernel for surgery::{operator}{asked}: {why}")


def run(operator: str, backends: Sequence[Backend], *args: Any, **kwargs: Any) -> Any:
    """Run the chosen backend."""
    return choose_backend(operator, backends, *args, **kwargs).run(*args, **kwargs)
