"""What the spec demands, held against what was measured.

`loss` is the cross-entropy of a language model or classifier, the denoising loss, or the output error: the first of
these that is measured. `latency` is of one forward pass, eager, at batch 1, the median of interleaved runs. `memory` is
the peak of a forward pass at batch 32, `size` is bytes of parameters and buffers, `flops` are per sample. `edges` is the
share of attention's possible edges that is kept on the calibration data, heads alike.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from surgery.diagnostics import Diagnostic, SpecError, UnprovenError
from surgery.report.edges import share_off

LOSSES = ("loss", "denoising loss", "output error")
SIZES = {"parameters": "parameters", "size": "bytes", "flops": "flops"}
CLOCKED = ("latency", "memory")
EDGES = "edges"
COMPARISONS = ("paired error", "output error", "logit kl")
"""What is only a comparison with the original: it is 0 for the original itself."""


def refuse_unmeasurable(
    requires: Iterable[Any], metrics: Collection[str], why: Mapping[str, str] | None = None
) -> None:
    """Before anything is measured: raise SpecError for every requirement that could not be judged afterwards.

    metrics: what will be measured; why: reasons, by metric, for what will not. S603 for a metric nothing measures
    on this model and data, S604 for a multiple of something that is 0 for the original.
    """
    faults = []
    for require in requires:
        name = _meant(require.metric, metrics)
        if name not in metrics:
            faults.append(_absent(require, metrics, (why or {}).get(require.metric)))
        elif name in COMPARISONS and require.relative:
            faults.append(_nothing_to_multiply(require, name))
    if faults:
        raise SpecError(diagnostics=faults)


def judge(requires: Iterable[Any], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per requirement: its text, what was measured, the limit, whether it holds. NaN never holds."""
    return [_row(require, document) for require in requires]


def refuse_broken(document: Mapping[str, Any], requires: Iterable[Any]) -> None:
    """Raise UnprovenError (S601, S602) naming every proof and requirement that does not hold."""
    faults = [_unproven(row) for row in document["parity"] if not row["holds"]]
    for require, row in zip(requires, document["requirements"], strict=True):
        if not row["holds"]:
            faults.append(_broken(require, row))
    if faults:
        error = UnprovenError(diagnostics=faults)
        error.report = document
        raise error


def measured(metric: str, document: Mapping[str, Any]) -> tuple[float, float]:
    """A metric before and after, in base units: fractions, seconds, bytes."""
    quality = {row["metric"]: row for row in document["quality"]}
    if metric in SIZES:
        row = document["size"][SIZES[metric]]
    elif metric == "memory":
        row = document["memory"]
    elif metric == EDGES:
        row = {"before": 1.0, "after": 1.0 - share_off(document)}
    elif metric == "latency":
        return _eager(document["latency"])
    else:
        row = quality[_meant(metric, quality)]
    return float(row["before"]), float(row["after"])


def _eager(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Of one forward pass: for a model that writes, its prefill."""
    row = next(
        row for row in rows if row["mode"] == "eager" and row["batch"] == 1 and row.get("phase", "prefill") == "prefill"
    )
    return row["before_ms"] / 1e3, row["after_ms"] / 1e3


def _meant(metric: str, there: Collection[str]) -> str:
    return next((name for name in LOSSES if name in there), metric) if metric == "loss" else metric


def _row(require: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    before, after = measured(require.metric, document)
    return {
        "text": require.text,
        "place": require.clause.place if require.clause else "",
        "measured": after,
        "before": before,
        "limit": require.threshold(before),
        "holds": bool(require.holds(after, before)),
    }


def _absent(require: Any, metrics: Collection[str], why: str | None) -> Diagnostic:
    return Diagnostic(
        "S603",
        f"`{require.metric}` is not measured on this model and data",
        _span(require),
        notes=(*([why] if why else ()), f"measured: {', '.join(metrics)}"),
        help="name data that fits, as in `data digits samples=2000`, or require one of the others",
    )


def _nothing_to_multiply(require: Any, name: str) -> Diagnostic:
    return Diagnostic(
        "S604",
        f"`{require.limit}` of the original's {name} is nothing: it compares with the original, which has none",
        _span(require),
        help=f"give the limit itself, as in `require {name} <= 5%`",
    )


def _unproven(row: Mapping[str, Any]) -> Diagnostic:
    return Diagnostic(
        "S601",
        f"{row['what']} does not hold in {row['dtype']} at batch {row['batch']}",
        None,
        notes=(f"largest difference {row['max_rel']:.2e} of the largest output, allowed {row['tolerance']:.0e}",),
        help="no model was written; this is a fault of ours, please report it with the spec",
    )


def _broken(require: Any, row: Mapping[str, Any]) -> Diagnostic:
    return Diagnostic(
        "S602",
        f"`{require.text}` does not hold",
        _span(require),
        label=f"measured {row['measured']:.4g}, limit {row['limit']:.4g}",
        notes=(f"{require.metric} was {row['before']:.4g} before",),
        help="no model was written; cut less, or require less",
    )


def _span(require: Any) -> Any:
    return require.clause.span if require.clause else None
