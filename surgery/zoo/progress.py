"""A progress bar for training and sampling: done, loss, time left. On stderr, and only on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SMOOTHING = 0.98


@contextmanager
def bar(what: str, total: int, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, float], None]]:
    """Yields `advance(done, value)`: a loss as the value of training, the total of samples when sampling."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    smooth: list[float] = []
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, loss="")

        def advance(done: int, value: float) -> None:
            if unit != "steps":
                progress.update(task, completed=done)
                return
            smooth[:] = [SMOOTHING * smooth[0] + (1 - SMOOTHING) * value if smooth else value]
            progress.update(task, completed=done, loss=f"loss {smooth[0]:.4f}")

        yield advance
