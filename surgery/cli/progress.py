"""One progress bar on stderr, for what takes longer than a second; nothing where nobody watches."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_S = 1.0
APART = " · "


@contextmanager
def bar(args: Namespace) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `progress(stage, done, total)`; a total of 0 is a stage of unknown length.

    Of a stage such as "gates: loss 0.01 · edges 0.4%", a training's, the numbers stand in a line below the bar.
    """
    if args.quiet or args.json or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from surgery.cli.terminal import console

    with _two_lines(console(args, sys.stderr)) as shown:
        task = shown.add_task("starting", total=None, visible=False, numbers="")
        started = time.monotonic()

        def advance(stage: str, done: int, total: int) -> None:
            late = time.monotonic() - started > PATIENCE_S
            name, numbers = told(stage)
            shown.update(
                task, description=name, completed=done, total=total or None, visible=late, numbers=numbers
            )

        yield advance


def told(stage: str) -> tuple[str, str]:
    """The name of a stage, and the numbers that it carries, if any: ("gates", "loss 0.01 · edges 0.4%")."""
    name, _, numbers = stage.partition(": ")
    return (name, numbers) if APART in numbers else (stage, "")


def _two_lines(console: Any) -> Any:
    """A progress of one bar, and below it the numbers of its task, cut where the terminal ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Numbered(Progress):
        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            for task in self.tasks:
                if task.visible and task.fields["numbers"]:
                    yield Text(f"  {task.fields['numbers']}", style="dim", no_wrap=True, overflow="ellipsis")

    class Counted(MofNCompleteColumn):
        def render(self, task: Any) -> Text:
            return super().render(task) if task.fields["numbers"] else Text()

    columns = (TextColumn("{task.description}"), BarColumn(), Counted(), TimeElapsedColumn(), TimeRemainingColumn())
    return Numbered(*columns, console=console, transient=True, refresh_per_second=4)
