"""Workers side by side, each a process of its own: one that hangs or dies is a result, and the next one goes on."""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

START_SECONDS = 300


class WorkerLost(RuntimeError):
    """The worker died or was stopped at the time limit; the message says which."""


class Worker:
    """One child process, started when first asked and again after it was lost."""

    def __init__(self, python: str = sys.executable, scratch: str | None = None):
        self.python, self.scratch = python, scratch
        self.process: subprocess.Popen | None = None

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises WorkerLost after `seconds`, or where the process ends without one."""
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            line = self._line(seconds)
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            return json.loads(line)
        raise WorkerLost(self._lost(seconds))

    def stop(self) -> None:
        """Kill the process and whatever it started (a compiler may be at work); who waits for its answer sees the end."""
        if (running := self.process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop, and free what it held."""
        if self.process is None:
            return
        self.stop()
        self.process.communicate()
        self.errors.close()
        self.process = None

    def _start(self) -> None:
        self.errors = tempfile.TemporaryFile()
        command = [self.python, "-m", "surgery.kernels.aot.worker"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            env=environment(self.scratch),
            start_new_session=True,
        )
        self.ask({"do": "hello"}, START_SECONDS)

    def _line(self, seconds: float) -> bytes:
        """A line, or what came of it before the limit or the end."""
        read, out = b"", self.process.stdout
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], seconds)
            piece = out.read(1 << 16) if ready else b""
            if not piece:
                return read
            read += piece
        return read

    def _lost(self, seconds: float) -> str:
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        self.close()
        if code is None:
            return f"stopped: not done after {seconds:g} s"
        return f"the compiler's process ended with {code}: {' / '.join(said) or 'it said nothing'}"


def environment(scratch: str | None) -> dict[str, str]:
    """A worker compiles: no interpreter, ptxas's log printed, Triton's own cache out of the way."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cache = {"TRITON_CACHE_DIR": scratch} if scratch else {}
    return {**kept, **cache, "TRITON_DUMP_PTXAS_LOG": "1", "CUDA_VISIBLE_DEVICES": ""}


class Pool:
    """Several workers, to be used in a `with`."""

    def __init__(self, jobs: int, python: str = sys.executable, seconds: float = 300):
        self.jobs, self.python, self.seconds = jobs, python, seconds

    def __enter__(self) -> "Pool":
        self.scratch = tempfile.TemporaryDirectory(prefix="surgery-aot-")
        self.all = [Worker(self.python, str(Path(self.scratch.name, str(each)))) for each in range(self.jobs)]
        self.free: queue.Queue[Worker] = queue.Queue()
        for worker in self.all:
            self.free.put(worker)
        self.threads = ThreadPoolExecutor(self.jobs)
        return self

    def __exit__(self, *exception: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.all:
            worker.stop()
        self.threads.shutdown(wait=True)
        for worker in self.all:
            worker.close()
        self.scratch.cleanup()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of whichever worker is free; {"lost": why} where it did not survive the question."""
        worker = self.free.get()
        try:
            return worker.ask(question, self.seconds)
        except WorkerLost as lost:
            return {"lost": str(lost)}
        finally:
            self.free.put(worker)

    def each(self, questions: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Answers as they come, each with its question's place."""
        asked = {self.threads.submit(self.ask, question): place for place, question in enumerate(questions)}
        for done in as_completed(asked):
            yield asked[done], done.result()
