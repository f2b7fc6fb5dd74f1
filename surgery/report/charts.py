"""Rows and places of the page's charts that are drawn with HTML alone, and captions of its figures."""

import re
from math import isfinite

from markupsafe import Markup

from surgery.report import scales, verdict, wording
from surgery.report.document import finding


def tensor_groups(action: dict) -> list[dict]:
    """Tensors of an action whose names differ in numbers only, together: name, how many, parameters before and after.

    `width` and `kept` are percentages: of the largest group, and of the group's own bar.
    """
    groups: dict[str, list[dict]] = {}
    for row in action["tensors"]:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", row["name"]), []).append(row)
    rows = [
        {
            "name": name if len(tensors) > 1 else tensors[0]["name"],
            "count": len(tensors),
            "before": sum(_numel(row["before"]) for row in tensors),
            "after": sum(_numel(row["after"]) for row in tensors),
            "shapes": f"{wording.shape(tensors[0]['before'])} → {wording.shape(tensors[0]['after'])}",
        }
        for name, tensors in groups.items()
    ]
    largest = max((row["before"] for row in rows), default=0) or 1
    for row in rows:
        row["width"] = round(max(100 * row["before"] / largest, 0.5), 2)
        row["kept"] = round(100 * row["after"] / row["before"], 2) if row["before"] else 100.0
    return rows


def samples(document: dict) -> list[dict]:
    """Grids of samples before and after, as `sample_grids` draws them."""
    found = finding(document, "samples")
    if not found or not found["labels"]:
        return []
    from surgery.report.images import sample_grids

    return sample_grids(found)


def controls(document: dict) -> dict | None:
    """This cut between its controls on the metric they are sorted by, dense as the line to reach, all metrics beside."""
    key, rows = verdict.sorted_controls(document)
    if not rows or key is None:
        return None
    quality = {row["metric"]: row for row in document["quality"]}
    metrics = [name for name in quality if any(name in row["metrics"] for row in rows)]
    metrics += sorted({name for row in rows for name in row["metrics"]} - set(metrics))
    own = {name: quality[name]["after"] for name in metrics if name in quality}
    entries = [{"name": "this cut", "metrics": own, "own": True}]
    entries += [{"name": row["name"], "metrics": row["metrics"], "own": False} for row in rows]
    dense = quality[key]["before"] if key in quality else None
    values = [entry["metrics"].get(key) for entry in entries]
    places, ticks = _places(key, [*values, dense])
    for entry, place in zip(entries, places, strict=False):
        entry["at"] = place
        entry["values"] = [wording.metric(name, entry["metrics"].get(name)) for name in metrics]
    first = "highest" if quality.get(key, {}).get("better") == "higher" else "lowest"
    return {"key": key, "first": first, "metrics": metrics, "rows": entries, "dense": places[-1], "ticks": ticks}


def criteria(document: dict) -> dict | None:
    """Closed-form error of each way to choose coordinates, on a log axis, best first."""
    rows = sorted(document.get("criteria") or (), key=lambda row: row["error"])
    if not rows:
        return None
    places, ticks = scales.logarithmic([row["error"] for row in rows])
    entries = [
        {
            "name": " + ".join(
                [row["by"], *([row["compensate"]] if row.get("compensate") not in (None, "none") else [])]
            ),
            "at": place,
            "error": f"{row['error']:.2g}",
            "own": bool(row.get("chosen")),
        }
        for row, place in zip(rows, places, strict=True)
    ]
    return {"rows": entries, "ticks": ticks}


def latency(document: dict) -> dict | None:
    """Bars of milliseconds before and after, the modes that were skipped, and a sentence for what is not faster."""
    rows = document.get("latency") or []
    if not rows:
        return None
    measured = [row for row in rows if verdict.speed(row) is not None]
    longest = max((max(row["before_ms"], row["after_ms"]) for row in measured), default=1)
    bars = [
        {
            "name": wording.run(row),
            "speed": wording.times(verdict.speed(row)),
            "faster": (verdict.speed(row) or 0) >= verdict.FASTER,
            "sides": [
                {
                    "name": side,
                    "time": wording.milliseconds(row[f"{side}_ms"]),
                    "width": 100 * row[f"{side}_ms"] / longest,
                }
                for side in ("before", "after")
            ],
        }
        for row in measured
    ]
    skipped = [f"{row['mode']}: {row['skipped']}" for row in rows if "skipped" in row]
    runs = sorted({row["runs"] for row in measured if row.get("runs")})
    notes = [*verdict.not_faster(document), *verdict.cut_alone(document)]
    return {"rows": bars, "skipped": skipped, "notes": notes, "runs": runs[0] if runs else None}


def search(document: dict) -> dict | None:
    """The shares tried for `auto`, as a figure, where at least two were measured."""
    found = document.get("search")
    if not found or sum(found["metric"] in trial["metrics"] for trial in found["trials"]) < 2:
        return None
    from surgery.report import plots

    knee = "" if found["knee"] is None else f", the knee of the curve at {found['knee']:.0%}"
    return figure(plots.search(found), f"{len(found['trials'])} shares tried; {found['share']:.1%} taken{knee}.")


def embeddings(found: dict | None) -> dict | None:
    """Figures with captions, and the table of participation ratios."""
    if found is None:
        return None
    from surgery.report import plots

    return {
        "found": found,
        "spectra": [figure(plots.spectrum(found, name), caption) for name, caption in _spectrum_captions(found)],
        "matrices": [
            figure(plots.similarity(found, name), caption, symbol=symbol)
            for name, symbol, caption in _matrix_captions(found)
        ],
        "curves": [figure(draw(found), caption) for draw, caption in _curve_captions(found, plots)],
        "participation": _participation(found),
    }


def figure(svg: str, caption: str, **more: str) -> dict:
    """A drawing with its caption, which is also what it is called for who cannot see it."""
    label = Markup('<svg role="img" aria-label="{}"').format(caption)
    return {"svg": Markup(svg.replace("<svg", label, 1)), "caption": caption, **more}


def _spectrum_captions(found: dict) -> list[tuple[str, str]]:
    cut, head, step = found.get("cut"), found["head"], f"{found['timesteps']['first']:g}"
    first = f"The conditional vector c = t + y at the first sampling step (timestep {step}), before the activation."
    second = "What the modulation layers read: the same vector after SiLU."
    if cut and cut["removed"]:
        shares = {name: f"{100 * value:.0f} %" for name, value in cut["agreement"].items()}
        first += f" {shares['magnitude']} of the {cut['removed']} smallest were removed."
        second += f" {shares['activation']} of the {cut['removed']} smallest were removed."
    if head["activation_share"] < head["magnitude_share"] / 2:
        second += (
            f" {head['negative']} of the {len(head['coordinates'])} largest |c| are negative, and silent after it:"
            f" together they hold {100 * head['magnitude_share']:.0f} % of |c|"
            f" and {100 * head['activation_share']:.0f} % of |SiLU(c)|."
        )
    return [("magnitude", first), ("activation", second)]


def _matrix_captions(found: dict) -> list[tuple[str, str, str]]:
    data, norms, signed = found["similarity"], found["norms"], wording.signed
    ratio = "" if norms["ratio"] is None else f" ‖t‖ = {norms['time']:.3g} is {norms['ratio']:.1f} × the mean ‖y‖."
    raw = (
        f"Mean cosine {signed(data['c']['mean'], 4)}, lowest {signed(data['c']['min'], 4)}.{ratio}"
        f" Predicted from norms and mean projections: {signed(data['predicted'], 4)}."
    )
    alone = f"Mean cosine {signed(data['y']['mean'])}, from {signed(data['y']['min'])} to {signed(data['y']['max'])}."
    centred = (
        f"c − mean c, which is y − mean y exactly, since all classes share t (largest difference"
        f" {wording.scientific(data['centred_gap'])}). Mean {signed(data['centred']['mean'])}; unrelated classes"
        f" would have −1/(K−1) = {signed(data['expected_centred'])}."
    )
    return [("c", "c = t + y", raw), ("y", "y alone", alone), ("centred", "centred", centred)]


def _curve_captions(found: dict, plots) -> list:
    variance, spread = found["class_variance"], found["directions"]
    grid = "timesteps × classes" if spread["points"] == spread["of"] else f"{spread['points']:,} points of the grid"
    top = variance["top"][0]
    below = "Share of coordinates of c below a threshold, averaged over classes."
    held = (
        f"Over {grid}, {spread['for_99']} directions hold 99 % of the variance of SiLU(c) and"
        f" {spread['for_998']} hold 99.8 %: most coordinates can be predicted from few."
    )
    along = (
        "Mean cosine between classes at every step: a shared t, where it is long, makes all classes look alike. Dashed:"
        " (R² + 2p + k r²) / (R² + 2p + r²), with R = ‖t‖, r = mean ‖y‖, k = mean cosine of y, p = mean ⟨t, y⟩."
    )
    varying = (
        f"The {top['coordinates']} most varying coordinates hold {100 * top['variance']:.0f} % of the variance"
        f" between classes. Rank correlation with |mean c|: {wording.signed(variance['rank_correlation'], 2)}."
    )
    return [(plots.tail, below), (plots.directions, held), (plots.sweep, along), (plots.class_variance, varying)]


def _participation(found: dict) -> list[dict]:
    names = {"y": "y, class embedding", "t": "t, time embedding", "c": "c = t + y", "activated": "SiLU(c)"}
    return [
        {
            "name": name,
            "npr": f"{found['participation'][key]['npr']:.3f}",
            "ratio": wording.times(found["participation"][key]["ratio"]),
            "width": round(100 * min(found["participation"][key]["npr"], 1.0), 2),
        }
        for key, name in names.items()
    ]


def _places(key: str, values: list[float | None]) -> tuple[list[float | None], list[dict]]:
    known = [value for value in values if value is not None and isfinite(value)]
    if key in wording.PERCENT_METRICS:
        places, ticks = scales.linear([100 * value for value in known], 0, 100, (0, 25, 50, 75, 100))
    else:
        places, ticks = scales.logarithmic(known)
    found = iter(places)
    return [None if value is None else next(found) if isfinite(value) else 100.0 for value in values], ticks


def _numel(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
