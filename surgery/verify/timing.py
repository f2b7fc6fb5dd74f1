"""Latency before and after, eager and compiled: the rows `latency` of a report."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from surgery.interleave import Ratio, Timing, interleaved, speedup

__all__ = ["Ratio", "Timing", "interleaved", "latency", "speedup"]


def latency(
    before: nn.Module,
    after: nn.Module,
    inputs_for: Callable[[int], tuple | dict[str, Any]],
    *,
    uncut: nn.Module | None = None,
    batches: Iterable[int] = (1, 32),
    compiled: bool = True,
    compiled_batch: int | None = None,
    runs: int = 30,
    budget_s: float | None = 6.0,
    device: Any = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of forward time, `before` and `after` measured in turn.

    inputs_for      batch size → the modules' inputs, positional (tuple) or by keyword (dict)
    uncut           the original run as `after` is run, as a graph, but with nothing cut: eager rows then say how much
                    of the ratio is the cut's own, `cut_ratio`, the median of uncut / after
    batches         eager batch sizes
    compiled        also through `torch.compile`, both modules alike, static shapes, at `compiled_batch`
                    (the last of `batches` when None): compiling costs seconds each, so one size
    budget_s        seconds of measuring per row

    A row is {mode, batch, before_ms, after_ms, ratio, low, high, runs} with `ratio` the median of before / after and
    `low`, `high` its quartiles; `note` says so where the quartiles hold 1. What cannot be compiled here gives
    {mode: "compiled", batch, skipped: reason}.
    """
    batches = tuple(batches)
    say = progress or (lambda text: None)

    def measure(mode: str, batch: int, first: Callable, second: Callable, third: Callable | None = None) -> dict:
        inputs = inputs_for(batch)
        candidates = {"before": lambda: call(first, inputs), "after": lambda: call(second, inputs)}
        if third is not None:
            candidates["uncut"] = lambda: call(third, inputs)
        times = interleaved(candidates, runs=runs, budget_s=budget_s, device=device)
        cut = {"cut_ratio": speedup(times["uncut"], times["after"]).median} if third is not None else {}
        return row(mode, batch, times["before"], times["after"]) | cut

    rows = []
    with torch.no_grad():
        for batch in batches:
            say(f"timing eager, batch {batch}")
            rows.append(measure("eager", batch, before, after, uncut))
        if compiled and batches:
            batch = batches[-1] if compiled_batch is None else compiled_batch
            say(f"compiling and timing, batch {batch}")
            rows.append(compiled_row(batch, before, after, measure))
    return rows


def row(mode: str, batch: int, before, after) -> dict[str, Any]:
    """One report row of two timings from the same rounds."""
    ratio = speedup(before, after)
    entry = {
        "mode": mode,
        "batch": batch,
        "before_ms": before.median_ms,
        "after_ms": after.median_ms,
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "runs": after.runs,
    }
    if ratio.median < 1 or not ratio.clear:
        entry["note"] = f"not faster: the middle half of the runs is {ratio.low:.2f}x to {ratio.high:.2f}x"
    return entry


def compiled_row(batch: int, before: nn.Module, after: nn.Module, measure: Callable) -> dict[str, Any]:
    """Both modules compiled and measured, or the reason why not."""
    from torch._dynamo.exc import TorchDynamoException

    with own_compiler_settings():
        try:
            pair = [torch.compile(module, dynamic=False) for module in (before, after)]
            return measure("compiled", batch, *pair)
        except (TorchDynamoException, RuntimeError, OSError, ImportError) as error:
            return {"mode": "compiled", "batch": batch, "skipped": reason(error)}


@contextmanager
def own_compiler_settings() -> Iterator[None]:
    """Compile for real and in this process; the caller's settings hold again afterwards."""
    import torch._dynamo
    import torch._inductor.config

    # Worker processes for the compiler outlive a measurement and would compete with the next one.
    inductor = torch._inductor.config.patch(compile_threads=1)
    dynamo = torch._dynamo.config.patch(suppress_errors=False, disable=False)
    with dynamo, inductor:
        yield


def reason(error: BaseException) -> str:
    """Why compiling failed, in one line: the missing C++ compiler by name, anything else by its first line."""
    from torch._inductor.exc import InvalidCxxCompiler

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InvalidCxxCompiler) or "InvalidCxxCompiler" in str(cause):
            return "no C++ compiler: torch.compile needs g++ or clang++"
        cause = cause.__cause__ or getattr(cause, "inner_exception", None)
    lines = str(error).strip().splitlines()
    return f"torch.compile failed: {type(error).__name__}" + (f": {lines[0][:200]}" if lines else "")


def call(module: Callable, inputs: tuple | dict[str, Any]) -> Any:
    """Call with positional (tuple) or keyword (dict) inputs."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)
