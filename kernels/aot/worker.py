"""A process that lists and compiles, asked by lines of JSON on its standard input, answering on its standard output.

    {"do": "hello"}                                    {"triton": "3.9.0"}
    {"do": "list", "file": F, "arch": A}               {"entries": [fields of an Entry, …]}
    {"do": "compile", "file": F, "arch": A, "index": i}   {"key": K, "used": fields of Resources}

`shelf` is the folder of kernel files. `rows`, a table's name and rows, stands in for what that table ships: so the
tuner asks what a candidate would use. Kernels are named by file and index, never sent: nothing is unpickled.
"""

import functools
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgery.kernels.aot import manifest
from surgery.kernels.aot.fingerprint import fingerprint, sources
from surgery.kernels.aot.rules import Entry


def main() -> None:
    """Serve until standard input ends. Whatever compilers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(asked,), daemon=True).start()
    while True:
        print(json.dumps(answer(json.loads(asked.get()))), file=answers, flush=True)


def listen(asked: "queue.Queue[str]") -> None:
    """Hand on questions; when nobody is left to ask, end at once, with the compiler that may be at work."""
    for line in sys.stdin:
        asked.put(line)
    os.killpg(0, signal.SIGKILL)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    import triton

    if question["do"] == "hello":
        return {"triton": triton.__version__}
    shelf, file, arch = Path(question["shelf"]), question["file"], question["arch"]
    with substitute(question.get("rows"), arch):
        if question["do"] == "list":
            return {"entries": [asdict(entry) for entry in entries(shelf, file, arch)]}
        return compiled(shelf, file, arch, question["index"])


@contextmanager
def substitute(rows: dict[str, Any] | None, arch: str) -> Iterator[None]:
    """Let a table ship other rows for the time being."""
    from surgery.kernels.tuning.pick import Config, substituted

    if rows is None:
        yield
        return
    shipped.cache_clear()
    with substituted(rows["table"], arch, tuple(Config(**row) for row in rows["configs"])):
        yield
    shipped.cache_clear()


@functools.cache
def shipped(shelf: Path, file: str, arch: str) -> list[manifest.Compilation]:
    sources(shelf / f"{file}.py")
    return manifest.of_file(file, arch, shelf)


def entries(shelf: Path, file: str, arch: str) -> list[Entry]:
    """What a file ships; a file or a compilation that cannot be asked for is an entry with a fault."""
    try:
        listed = shipped(shelf, file, arch)
    except Exception as error:
        return [Entry(file, -1, arch, f"{file}:", "", fault=_said(error))]
    return [_entry(shelf, file, arch, index, each) for index, each in enumerate(listed)]


def _entry(shelf: Path, file: str, arch: str, index: int, compilation: manifest.Compilation) -> Entry:
    import triton
    from surgery.kernels.aot.compile import kernel_source

    place = (file, index, arch, compilation.kernel, compilation.name)
    try:
        kernel_source(manifest.load(compilation.file, shelf), compilation)
        key = fingerprint(compilation, arch, triton.__version__, shelf)
    except Exception as error:
        return Entry(*place, fault=_said(error))
    return Entry(*place, key, tuple(compilation.expects.get(arch, ())), len(compilation.aligned))


def compiled(shelf: Path, file: str, arch: str, index: int) -> dict[str, Any]:
    """What it uses, under the key of what was really compiled: the file may have changed since it was listed."""
    import triton
    from surgery.kernels.aot.compile import kernel_source, measure

    compilation = shipped(shelf, file, arch)[index]
    source = kernel_source(manifest.load(compilation.file, shelf), compilation)
    key = fingerprint(compilation, arch, triton.__version__, shelf)
    return {"key": key, "used": measure(source, compilation, arch).to_json()}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]


if __name__ == "__main__":
    main()
