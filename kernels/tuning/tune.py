"""Choose among candidates: drop what breaks a rule when compiled ahead, measure the rest, keep the fastest right one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from surgery.kernels.aot import manifest
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.survey import Row, listed, surveyed
from surgery.kernels.tuning.case import Case
from surgery.kernels.tuning.pick import Config
from surgery.kernels.tuning.tables import as_json
from torch import Tensor

Survey = Callable[[Config], Sequence[Row]]
Measure = Callable[[Callable[[], Any]], float]
# Of the largest output: candidates differ from the shipped row by the order of their sums.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}
# A candidate replaces the shipped row only if it is faster by more than what two runs differ by.
GAIN = 0.98


@dataclass(frozen=True)
class Trial:
    """A candidate and what came of it: milliseconds, or why it was not measured."""

    case: Case
    config: Config
    milliseconds: float | None = None
    refused: str | None = None


def milliseconds(call: Callable[[], Any]) -> float:
    """Median GPU time of a call, the L2 cache flushed before each."""
    from triton.testing import do_bench

    return do_bench(call, warmup=50, rep=200, return_mode="median")


def tune(cases: Iterable[Case], survey: Survey, measure: Measure = milliseconds, jobs: int = 1) -> Iterator[Trial]:
    """Every trial, case by case; the shipped row is the first of each case, and its outputs are what is right."""
    for case in cases:
        right, failed = outputs(case, case.candidates[0])
        for config, rows in zip(case.candidates, together(survey, case.candidates, jobs)):
            refused = refusal(rows) or (failed and f"nothing to compare with, the shipped row fails: {failed}")
            yield Trial(case, config, refused=refused) if refused else attempt(case, config, right, measure)


def together(survey: Survey, configs: Sequence[Config], jobs: int) -> list[Sequence[Row]]:
    """The surveys of candidates, several at a time."""
    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(survey, configs))


def refusal(rows: Sequence[Row]) -> str | None:
    """Why a candidate is not worth a launch: nothing compiles it, or a rule is broken."""
    if not rows:
        return "no kernel compiles with this row"
    return next((fault.splitlines()[0] for row in rows for fault in row.faults), None)


def outputs(case: Case, config: Config) -> tuple[list[Tensor], str | None]:
    """What a launch gives, or why it failed: what a driver or a launcher may raise cannot be listed."""
    try:
        return tensors(case.launch(config)), None
    except Exception as error:
        return [], f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


def attempt(case: Case, config: Config, right: list[Tensor], measure: Measure) -> Trial:
    """Run, compare with the shipped row's outputs, measure."""
    found, failed = outputs(case, config)
    if failed:
        return Trial(case, config, refused=failed)
    if not alike(found, right, TOLERANCE[case.dtype]):
        return Trial(case, config, refused="other results than the shipped row")
    return Trial(case, config, measure(lambda: case.launch(config)))


def tensors(returned: Any) -> list[Tensor]:
    """What a launch returned as a list, copied: the next launch may write to the same memory."""
    held = [returned] if isinstance(returned, Tensor) else list(returned)
    return [each.clone() for each in held]


def alike(ours: list[Tensor], right: list[Tensor], tolerance: float) -> bool:
    """Whether outputs agree up to a share of the largest; NaN only where both have it, infinities equal."""
    pairs = [(mine.double(), theirs.double()) for mine, theirs in zip(ours, right, strict=True)]
    return all(_close(mine, theirs, tolerance) for mine, theirs in pairs)


def _close(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    finite = theirs.isfinite()
    scale = float(theirs[finite].abs().max()) if bool(finite.any()) else 0.0
    return torch.allclose(mine, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def best(trials: Sequence[Trial]) -> Config | None:
    """The fastest of one case; the shipped row unless another gains more than noise. None if nothing ran."""
    ran = [trial for trial in trials if trial.milliseconds is not None]
    if not ran:
        return None
    fastest, first = min(ran, key=lambda trial: trial.milliseconds), trials[0]
    if first.milliseconds is not None and fastest.milliseconds > GAIN * first.milliseconds:
        return first.config
    return fastest.config


def surveyor(pool: Pool, table: str, arch: str) -> Survey:
    """Resources of candidates for a table: compiled ahead, by the files that read it, kept in the same cache."""
    files = readers(pool, table, arch)

    def survey(config: Config) -> list[Row]:
        return surveyed(pool, [arch], files, rows={"table": table, "configs": [as_json(config)]})

    return survey


def readers(pool: Pool, table: str, arch: str) -> list[str]:
    """The kernel files that ship something else when the table is empty."""
    names = manifest.files()
    with_rows = listed(pool, [arch], names, manifest.SHELF)
    without = listed(pool, [arch], names, manifest.SHELF, {"table": table, "configs": []})
    lists = [{name: [e for e in entries if e.file == name] for name in names} for entries in (with_rows, without)]
    return [name for name in names if lists[0][name] != lists[1][name]]
