"""`prune auto of mlp channels`: the largest share under which the spec's demands on quality hold.

Quality falls as the share grows, so a bisection finds where it falls too far. All clauses with `auto` take one share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from surgery.diagnostics import RefusalError
from surgery.operations.kinds import Share
from surgery.session.evidence import Evidence, quality_rows
from surgery.session.feeding import as_before
from surgery.session.prepare import Prepared, planned
from surgery.session.requirements import judge
from surgery.session.rewrite import Choices, choose, rewrite
from surgery.targets.context import Context
from surgery.verify.measurement import Measurement

STEPS = 64
"""Shares that are told apart: one is a 64th of what is cut, before it is rounded to whole units."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A share that was tried: what was measured and whether every demand on quality holds; `refused` says why it could
    not be cut."""

    share: Fraction
    prepared: Prepared
    choices: Choices = ()
    metrics: Mapping[str, float] | None = None
    holds: bool = False
    refused: str = ""

    def document(self) -> dict[str, Any]:
        told = {"share": float(self.share), "metrics": dict(self.metrics or {}), "holds": self.holds}
        return told | ({"refused": self.refused} if self.refused else {})


@dataclass(frozen=True, eq=False)
class Found:
    """The largest share that holds, or the smallest tried where none does; every trial, smallest share first."""

    chosen: Trial
    trials: tuple[Trial, ...]
    metric: str

    def document(self) -> dict[str, Any]:
        return {
            "share": float(self.chosen.share),
            "holds": self.chosen.holds,
            "metric": self.metric,
            "knee": self._knee(),
            "trials": [trial.document() for trial in self.trials],
        }

    def _knee(self) -> float | None:
        """The share at which the curve bends most: farthest from the line between its ends, both axes to scale."""
        points = [(float(t.share), t.metrics[self.metric]) for t in self.trials if self.metric in (t.metrics or {})]
        (x0, y0), (x1, y1) = points[0], points[-1]
        if len(points) < 3 or x0 == x1 or y0 == y1:
            return None
        return max(points, key=lambda point: abs((point[0] - x0) / (x1 - x0) - (point[1] - y0) / (y1 - y0)))[0]


def is_searched(prepared: Prepared) -> bool:
    """Whether the spec leaves a share to be found."""
    return any(map(_auto, prepared.program.operations))


def search(prepared: Prepared, evidence: Evidence, context: Context) -> Found:
    """Try shares by bisection, six of them, each cut and measured like the model itself.

    Raises RefusalError where even the smallest share cannot be cut.
    """
    before = evidence.measure(prepared.model.module, "the original")
    limits = [require for require in prepared.program.requires if require.limits]
    trials: dict[int, Trial] = {}
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        context.progress(f"searching, {middle / STEPS:.0%} now", len(trials), STEPS.bit_length() - 1)
        trials[middle] = _try(prepared, Fraction(middle, STEPS), evidence, context, before, limits)
        low, high = (middle, high) if trials[middle].holds else (low, middle)
    ordered = [trials[step] for step in sorted(trials)]
    chosen = trials.get(low) or next((trial for trial in ordered if not trial.refused), ordered[0])
    if chosen.refused:
        with_share(prepared, chosen.share)
    return Found(chosen, tuple(ordered), _metric(limits[0].metric, ordered))


def _try(
    prepared: Prepared,
    share: Fraction,
    evidence: Evidence,
    context: Context,
    before: Measurement,
    limits: list[Any],
) -> Trial:
    try:
        cut = with_share(prepared, share)
    except RefusalError as error:
        return Trial(share, prepared, refused=error.diagnostics[0].message)
    choices = choose(cut, context)
    module = as_before(cut, choices, rewrite(cut, choices, context))
    now = evidence.measure(module, f"{float(share):.0%} cut")
    rows = quality_rows(evidence, before, now)
    held = all(row["holds"] for row in judge(limits, {"quality": rows}))
    return Trial(share, cut, choices, {row["metric"]: row["after"] for row in rows}, held)


def with_share(prepared: Prepared, share: Fraction) -> Prepared:
    """The same spec with the share in place of every `auto`. Raises RefusalError where a site cannot lose as much."""
    operations = tuple(
        replace(one, share=Share(fraction=share)) if _auto(one) else one for one in prepared.program.operations
    )
    works, matches = planned(operations, prepared.anatomy, prepared.model.reference)
    return replace(prepared, program=replace(prepared.program, operations=operations), works=works, matches=matches)


def _auto(operation: Any) -> bool:
    return bool(getattr(getattr(operation, "share", None), "auto", False))


def _metric(asked: str, trials: list[Trial]) -> str:
    """The metric that was asked about; `loss` may be measured under another name."""
    names = [name for trial in trials for name in trial.metrics or {}]
    return asked if asked in names or not names else names[0]
