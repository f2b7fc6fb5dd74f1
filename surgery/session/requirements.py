"""What the spec demands, held against what was measured."""

from collections.abc import Iterable
from typing import Any

from surgery.diagnostics import Diagnostic, SurgeryError, UnprovenError

LOSSES = ("denoising loss", "output error")
"""What `loss` means: the first of these that was measured."""


def judge(requires: Iterable[Any], document: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per requirement: its text, what was measured, the limit, whether it holds.

    Raises SurgeryError (S603) for a metric nothing measured on this model and data.
    """
    return [_row(require, document) for require in requires]


def refuse_broken(document: dict[str, Any], requires: Iterable[Any]) -> None:
    """Raise UnprovenError (S601, S602) naming every proof and requirement that does not hold."""
    faults = [_unproven(row) for row in document["parity"] if not row["holds"]]
    for require, row in zip(requires, document["requirements"], strict=True):
        if not row["holds"]:
            faults.append(_broken(require, row))
    if faults:
        raise UnprovenError(diagnostics=faults)


def _row(require: Any, document: dict[str, Any]) -> dict[str, Any]:
    before, after = measured(require, document)
    threshold = require.threshold(before)
    return {
        "text": require.text,
        "place": require.clause.place if require.clause else "",
        "measured": after,
        "before": before,
        "limit": threshold,
        "holds": bool(require.holds(after, before)),
    }


def measured(require: Any, document: dict[str, Any]) -> tuple[float, float]:
    """A metric before and after, in base units: fractions, seconds, bytes."""
    metric = require.metric
    quality = {row["metric"]: row for row in document["quality"]}
    for name in LOSSES if metric == "loss" else (metric,):
        if name in quality:
            return float(quality[name]["before"]), float(quality[name]["after"])
    sizes = {"parameters": "parameters", "size": "bytes", "flops": "flops"}
    if metric in sizes:
        row = document["size"][sizes[metric]]
        return float(row["before"]), float(row["after"])
    if metric == "latency":
        rows = [row for row in document.get("latency", ()) if "skipped" not in row and row["mode"] == "eager"]
        if rows:
            return rows[0]["before_ms"] / 1e3, rows[0]["after_ms"] / 1e3
    if metric == "memory" and document.get("memory"):
        return float(document["memory"]["before"]), float(document["memory"]["after"])
    raise _absent(require, quality)


def _absent(require: Any, quality: dict[str, Any]) -> SurgeryError:
    there = ", ".join([*quality, "parameters", "size", "flops", "latency", "memory"])
    return SurgeryError(
        f"`{require.metric}` is not measured on this model and data",
        code="S603",
        span=_span(require),
        notes=[f"measured: {there}"],
        help="name data that fits, as in `data digits samples=2000`, or require one of the others",
    )


def _unproven(row: dict[str, Any]) -> Diagnostic:
    return Diagnostic(
        "S601",
        f"{row['what']} does not hold in {row['dtype']} at batch {row['batch']}",
        None,
        notes=(f"largest difference {row['max_rel']:.2e} of the largest output, allowed {row['tolerance']:.0e}",),
        help="no model was written; this is a fault of ours, please report it with the spec",
    )


def _broken(require: Any, row: dict[str, Any]) -> Diagnostic:
    return Diagnostic(
        "S602",
        f"`{require.text}` does not hold",
        _span(require),
        label=f"measured {row['measured']:.4g}, limit {row['limit']:.4g}",
        notes=(f"{require.metric} was {row['before']:.4g} before",),
        help="no model was written; cut less, or require less",
    )


def _span(require: Any):
    return require.clause.span if require.clause else None
