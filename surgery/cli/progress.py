"""One progress bar on stderr, for what takes longer than a second; nothing where nobody watches."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 1.0


@contextmanager
def bar(args: Namespace) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `progress(stage, done, total)`; a total of 0 is a stage of unknown length."""
    if args.quiet or args.json or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from surgery.cli.terminal import console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(args, sys.stderr), transient=True, refresh_per_second=4) as shown:
        task = shown.add_task("starting", total=None, visible=False)
        started = time.monotonic()

        def advance(stage: str, done: int, total: int) -> None:
            late = time.monotonic() - started > PATIENCE_S
            shown.update(task, description=stage, completed=done, total=total or None, visible=late)

        yield advance
