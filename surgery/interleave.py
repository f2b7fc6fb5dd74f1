"""How long things take: candidates measured in turn, in one process, so that they meet the same machine.

A ratio taken from two separate runs compares two machines: clocks, caches and neighbours change between them. Here
every round runs each candidate once, in a rotated order that is reversed in odd rounds, and ratios are formed within
a round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SHORTEST_SAMPLE_MS = 0.2
"""Below this the clock's own cost shows, so that a call is repeated within one sample."""

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median and quartiles over `runs` samples, the samples in the order of the rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    samples_ms: tuple[float, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Ratio:
    """How many times faster `after` is than `before`: median and quartiles of the ratios within rounds."""

    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the quartiles lie on one side of 1."""
        return self.low > 1 or self.high < 1


def quartiles(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Low quartile, median, high quartile of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def speedup(before: Timing, after: Timing) -> Ratio:
    """The ratio before / after of two candidates of one `interleaved` run."""
    low, middle, high = quartiles(tuple(b / a for b, a in zip(before.samples_ms, after.samples_ms, strict=True)))
    return Ratio(middle, low, high)


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 30,
    warmup: int = 3,
    budget_s: float | None = None,
    device: Any = None,
    clock: str = "wall",
) -> dict[str, Timing]:
    """Time every candidate `runs` times, round by round.

    candidates  name → a call without arguments
    warmup      calls of each before the first round, at least one: they also find how often a short call repeats
    budget_s    no new round starts after so many seconds, but at least three rounds are run
    device      a CUDA device (measured with events) or None, "cpu"
    clock       "wall", or "cpu": time of this thread alone, for single-threaded work on a machine that others share

    Raises `ValueError` for no candidates, no runs or an unknown clock.
    """
    if not candidates or runs < 1:
        raise ValueError("nothing to time: give at least one candidate and one run")
    sample = sampler(device, clock)
    repeats = {name: calibrate(call, sample, max(1, warmup)) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.monotonic()
    for number in range(runs):
        with no_collection():
            for name in turn(list(candidates), number):
                samples[name].append(sample(candidates[name], repeats[name]))
        if budget_s is not None and number + 1 >= FEWEST_ROUNDS and time.monotonic() - started > budget_s:
            break
    return {name: timing_of(tuple(values)) for name, values in samples.items()}


def timing_of(samples: tuple[float, ...]) -> Timing:
    low, middle, high = quartiles(samples)
    return Timing(middle, low, high, len(samples), samples)


def turn(names: list[str], number: int) -> list[str]:
    """The order of round `number`: rotated by it, and reversed when odd, so that neighbours change too."""
    shift = number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if number % 2 else order


def calibrate(call: Callable[[], Any], sample: Callable, warmup: int) -> int:
    """Warm a call up; how often it repeats within a sample so that a sample is not too short to measure."""
    for _ in range(warmup - 1):
        call()
    once = sample(call, 1)
    if once >= SHORTEST_SAMPLE_MS:
        return 1
    return min(1000, max(1, round(SHORTEST_SAMPLE_MS / max(once, 1e-4) + 0.5)))


def sampler(device: Any, clock: str) -> Callable[[Callable[[], Any], int], float]:
    """A function (call, repeats) → milliseconds per call."""
    if str(device).startswith("cuda"):
        return sample_cuda(device)
    clocks = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}
    if clock not in clocks:
        raise ValueError(f"unknown clock `{clock}`: wall or cpu")
    now = clocks[clock]

    def sample(call: Callable[[], Any], repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return max(now() - start, 1) / 1e6 / repeats

    return sample


def sample_cuda(device: Any) -> Callable[[Callable[[], Any], int], float]:
    import torch

    def sample(call: Callable[[], Any], repeats: int) -> float:
        with torch.cuda.device(device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / repeats

    return sample


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of a round; what was set before is set again after."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
