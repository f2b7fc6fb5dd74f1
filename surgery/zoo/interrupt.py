"""Let a step finish before Ctrl-C takes effect."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(*more: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed, or one of `more` was sent, such as the SIGTERM of
    torchrun and of batch systems. A second one of the same kind takes effect at once.

    Off the main thread, and where the process was told to ignore a signal, nothing changes and the answer stays False.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, *more)}

    def press(kind: int, _: object) -> None:
        pressed.set()
        signal.signal(kind, before[kind])

    heard = [kind for kind, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for kind in heard:
        signal.signal(kind, press)
    try:
        yield pressed.is_set
    finally:
        for kind in heard:
            signal.signal(kind, before[kind])
