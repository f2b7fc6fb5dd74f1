"""The speed gate: a site is lowered to a sparse kernel only where that measured faster, here, at its own shape.

`choose` is given the dense way and the candidates as callables on real tensors. It measures them in turn, in one run,
takes the fastest that is clearly faster than dense, and otherwise stays dense. What it measured is kept per device,
so that the next site of the same shape is decided without measuring wherever that already decides it.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.interleave import Timing, interleaved, speedup
from surgery.layout import cache
from surgery.lowering.crossover import Crossover, Point

DENSE = "dense"
RUNS = 15
BUDGET_S = 2.0


@dataclass(frozen=True)
class Question:
    """What a decision depends on: the operation, the shape and dtype it runs at, and the share of work it keeps.

    `shape` names sizes, as {"B": 1, "H": 8, "S": 4096, "D": 64}; `density` is kept work / dense work.
    """

    operation: str
    shape: Mapping[str, int]
    dtype: str
    density: float

    def key(self, candidate: str) -> str:
        """All but the density, and what of the software a time depends on."""
        import torch

        sizes = " ".join(f"{name}={size}" for name, size in sorted(self.shape.items()))
        threads = torch.get_num_threads()
        return f"{self.operation}/{candidate} {sizes} {self.dtype} threads={threads} torch={torch.__version__}"


@dataclass(frozen=True)
class Decision:
    """What was chosen and why: data for the report.

    milliseconds    median per candidate measured in this run, dense included; empty if nothing had to be measured
    ratio           dense / chosen of this run, or of the measurement that decided
    rejected        candidate → why it was not taken
    """

    operation: str
    chosen: str
    ratio: float
    reason: str
    measured: bool
    device: str
    question: Mapping[str, Any]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        """Whether something other than the dense way was chosen."""
        return self.chosen != DENSE

    def document(self) -> dict[str, Any]:
        """Plain data, as reports hold it."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


def choose(
    question: Question,
    dense: Callable[[], Any],
    candidates: Mapping[str, Callable[[], Any]],
    *,
    device: Any = "cpu",
    crossover: Crossover | None = None,
    remeasure: bool = False,
    clock: str = "wall",
    budget_s: float = BUDGET_S,
) -> Decision:
    """The fastest way to run a site, never one slower than dense.

    dense, candidates   calls without arguments that do the site's work at its real shapes; a candidate that raises
                        NotImplementedError or RuntimeError is out, with its message as the reason
    crossover           where earlier measurements are kept; None: the folder of this user and device
    remeasure           measure even where earlier measurements decide
    """
    named = device_name(device)
    known = Crossover(cache("gate"), named) if crossover is None else crossover
    if not remeasure and (decided := _remembered(question, candidates, known, named)):
        return decided
    able, rejected = _able(candidates)
    times = interleaved({DENSE: dense, **able}, runs=RUNS, budget_s=budget_s, device=device, clock=clock)
    for name in able:
        known.add(question.key(name), _point(question.density, times[name], times[DENSE]))
    return _decide(question, times, rejected, named)


def _decide(question: Question, times: Mapping[str, Timing], rejected: dict[str, str], device: str) -> Decision:
    ratios = {name: speedup(times[DENSE], timing) for name, timing in times.items() if name != DENSE}
    faster = {name: ratio for name, ratio in ratios.items() if ratio.median > 1 and ratio.clear}
    chosen = max(faster, key=lambda name: faster[name].median, default=DENSE)
    for name, ratio in ratios.items():
        if name != chosen:
            spread = f"{ratio.median:.2f}x dense ({ratio.low:.2f} to {ratio.high:.2f})"
            rejected[name] = spread if name not in faster else f"{spread}, slower than {chosen}"
    fact = f"{ratios[chosen].median:.2f}x dense" if chosen != DENSE else "nothing measured clearly faster"
    return Decision(
        question.operation,
        chosen,
        ratios[chosen].median if chosen != DENSE else 1.0,
        f"measured here: {fact}",
        True,
        device,
        vars(question),
        {name: timing.median_ms for name, timing in times.items()},
        rejected,
    )


def _remembered(question: Question, candidates: Mapping[str, Any], known: Crossover, device: str) -> Decision | None:
    """The decision if earlier measurements make it: every candidate has its verdict."""
    verdicts = {name: known.verdict(question.key(name), question.density) for name in candidates}
    if not verdicts or any(verdict is None for verdict in verdicts.values()):
        return None
    won = {name: verdict[1] for name, verdict in verdicts.items() if verdict and verdict[0]}
    lost = {name: verdict[1] for name, verdict in verdicts.items() if verdict and not verdict[0]}
    if len(won) > 1:
        return None  # Which of them is faster at this density, only a measurement tells.
    chosen = next(iter(won), DENSE)
    reasons = {name: f"{point.ratio:.2f}x dense at density {point.density:.2%}" for name, point in lost.items()}
    fact = f"{won[chosen].ratio:.2f}x dense at density {won[chosen].density:.2%}" if won else "no candidate won"
    ratio = won[chosen].ratio if won else 1.0
    return Decision(
        question.operation, chosen, ratio, f"measured before: {fact}", False, device, vars(question), {}, reasons
    )


def _able(candidates: Mapping[str, Callable]) -> tuple[dict[str, Callable], dict[str, str]]:
    """The candidates that run, and why the others do not."""
    able, rejected = {}, {}
    for name, call in candidates.items():
        try:
            call()
        except (NotImplementedError, RuntimeError) as error:
            rejected[name] = f"does not run here: {str(error).strip().splitlines()[0][:200] or type(error).__name__}"
        else:
            able[name] = call
    return able, rejected


def _point(density: float, candidate: Timing, dense: Timing) -> Point:
    ratio = speedup(dense, candidate)
    return Point(density, candidate.median_ms, dense.median_ms, ratio.clear)


def device_name(device: Any) -> str:
    """The device as reports name it: the GPU's name, or the processor's."""
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
