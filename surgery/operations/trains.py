"""What no operation that trains can be written with."""

from collections.abc import Iterator
from typing import Any


def untrainable(operation: Any) -> Iterator[tuple[str, str]]:
    """(message, help) of the settings `lr`, `accumulate` and `batch` that cannot go together; a batch of None is open."""
    if not operation.lr > 0:
        yield "`lr=0` changes nothing", "give a rate, such as `lr=1e-4`"
    if operation.batch is not None and operation.accumulate > operation.batch:
        message = f"`accumulate={operation.accumulate}` passes cannot share out `batch={operation.batch}` rows"
        yield message, f"write `accumulate={operation.batch}` or less"
