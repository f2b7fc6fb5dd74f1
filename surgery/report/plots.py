"""Figures of a report about class embeddings and searches."""

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from surgery.report import wording
from surgery.report.drawing import (
    INK,
    KEPT,
    LINE,
    MUTED,
    REMOVED,
    SQUARE,
    STYLE,
    WIDE,
    curve_name,
    cut_line,
    figure_of,
    log_labels,
    percent,
    svg,
)

DIVERGING = LinearSegmentedColormap.from_list("surgery", ["#a84300", "#f0a877", "#f4f4f2", "#7fb3d8", "#00518a"])
MARKED = 200
PREDICTED = "predicted from ‖t‖ and ‖y‖ (dashed)"


def spectrum(finding: dict, name: str = "magnitude") -> str:
    """Sorted mean |c| ("magnitude"), |activation(c)| ("activation") or its effect, kept and removed coordinates apart."""
    data = finding["spectrum"][name]
    symbol = {"magnitude": "|c|", "activation": "|SiLU(c)|", "effect": "|SiLU(c)|·‖column‖"}[name]
    floor = max(max(data["values"]) * 1e-6, 1e-30)
    points = [(rank, max(value, floor)) for rank, value in enumerate(data["values"], 1)]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        axes.set_yscale("log")
        kept = data.get("kept") or [True] * len(points)
        for flag, colour, marker, word in ((True, KEPT, "o", "kept"), (False, REMOVED, "x", "removed")):
            chosen = [point for point, keep in zip(points, kept, strict=True) if keep is flag]
            if chosen:
                _points(axes, chosen, colour, marker, len(points))
            if chosen and "kept" in data:
                sign, height = ("●", 0.96) if flag else ("×", 0.87)
                sign = sign if len(points) <= MARKED else "■"
                note = f"{sign} {len(chosen)} {word}"
                axes.text(0.98, height, note, color=colour, ha="right", va="top", transform=axes.transAxes)
        removed = kept.count(False)
        axes.set_ylim(bottom=0.7 * points[-1][1])
        if removed:
            cut_line(axes, len(points) - removed + 0.5, f"the {removed} smallest →", height=0.7)
        log_labels(axes.yaxis)
        axes.set_xlabel(f"coordinate of {len(points)}, largest first")
        axes.set_ylabel(f"mean {symbol}")
        return svg(figure, f"spectrum-{name}")


def similarity(finding: dict, name: str) -> str:
    """Cosine matrix of "c", "y" or "centred", on one scale from −1 to 1, with its values where they fit."""
    matrix, labels = finding["similarity"]["matrices"][name], finding["similarity"]["shown"]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(SQUARE)
        axes.imshow(matrix, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="none")
        axes.spines[:].set_visible(False)
        ticks = _few(len(labels))
        axes.set_xticks(ticks, [labels[i] for i in ticks])
        axes.set_yticks(ticks, [labels[i] for i in ticks])
        axes.tick_params(length=0)
        axes.set_xlabel("class")
        if len(labels) <= 12:
            _cell_values(axes, matrix)
        return svg(figure, f"similarity-{name}")


def sweep(finding: dict) -> str:
    """Mean class cosine along the timesteps: measured, predicted from ‖t‖/‖y‖, and that of y alone."""
    data = finding["sweep"]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        steps = data["timesteps"]
        axes.plot(steps, data["cosine"], color=KEPT)
        axes.plot(steps, data["predicted"], color=REMOVED, linestyle=(0, (2, 2)), linewidth=2.4)
        axes.axhline(data["alone"], color=MUTED, linewidth=1.2)
        low = min(0.0, data["alone"], *data["cosine"])
        axes.set_ylim(low - 0.06, 1.3)
        axes.set_yticks([tick for tick in (-0.5, 0, 0.5, 1) if tick >= low])
        for height, text, colour in ((0.99, "c = t + y, measured", KEPT), (0.9, PREDICTED, REMOVED)):
            axes.text(0.98, height, text, color=colour, ha="right", va="top", transform=axes.transAxes)
        middle = (min(steps) + max(steps)) / 2
        note = f"y alone, {wording.signed(data['alone'])}"
        axes.text(middle, data["alone"] + 0.03, note, color=MUTED, ha="center")
        first = finding["timesteps"]["first"]
        if abs(first - max(steps)) < abs(first - min(steps)):
            axes.invert_xaxis()
        axes.set_xlabel("timestep, in sampling order")
        axes.set_ylabel("mean cosine between classes")
        return svg(figure, "sweep")


def tail(finding: dict) -> str:
    """s_tail(τ): the share of coordinates below τ, beside a Gaussian vector of the same rms, the cut drawn in."""
    data = finding["tail"]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        axes.set_xscale("log")
        gaussian = [math.erf(x / (data["rms"] * 2**0.5)) for x in data["thresholds"]] if data["rms"] else []
        if gaussian:
            axes.plot(data["thresholds"], gaussian, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2)
            curve_name(axes, data["thresholds"], gaussian, 0.5, "Gaussian of\nthe same rms", MUTED, above=False)
        axes.plot(data["thresholds"], data["tail"], color=KEPT)
        curve_name(axes, data["thresholds"], data["tail"], 0.42, "s_tail(τ)", KEPT, above=True)
        cut = finding.get("cut")
        if cut and cut["removed"] and cut["threshold"]:
            axes.plot([data["thresholds"][0], cut["threshold"]], [cut["share"]] * 2, color=REMOVED, linewidth=1)
            axes.plot([cut["threshold"]] * 2, [0, cut["share"]], color=REMOVED, linewidth=1)
            note = f"{100 * cut['share']:.0f} % lie below τ = {cut['threshold']:.3g}"
            axes.text(data["thresholds"][0], cut["share"] + 0.02, note, color=REMOVED, va="bottom")
        axes.set_ylim(0, 1.02)
        percent(axes.yaxis)
        log_labels(axes.xaxis)
        axes.set_xlabel("threshold τ on |c|")
        axes.set_ylabel("coordinates below τ")
        return svg(figure, "tail")


def class_variance(finding: dict) -> str:
    """Share of the variance over classes that the most varying coordinates hold."""
    data = finding["class_variance"]
    width = len(data["cumulative"])
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        share = [0.0, *(i / width for i in range(1, width + 1))]
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
        axes.text(0.6, 0.55, "if all varied alike", color=MUTED, va="top")
        axes.plot(share, [0.0, *data["cumulative"]], color=KEPT)
        for line, top in enumerate(data["top"]):
            axes.plot([top["coordinates"] / width], [top["variance"]], "o", color=KEPT, markersize=5)
            note = f"top {100 * top['share']:.0f} % hold {100 * top['variance']:.0f} %"
            axes.text(0.98, 0.28 - 0.09 * line, note, color=KEPT, ha="right", va="top", transform=axes.transAxes)
        percent(axes.xaxis)
        percent(axes.yaxis)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("coordinates, most varying first")
        axes.set_ylabel("variance over classes")
        return svg(figure, "class-variance")


def directions(finding: dict) -> str:
    """Variance of SiLU(c) over timesteps × classes that is missed by the first n principal directions (log scale)."""
    data = finding["directions"]
    missed = [max(1 - value, 1e-6) for value in data["cumulative"]]
    last = next((i for i, value in enumerate(missed) if value <= 1e-5), len(missed) - 1)
    cut = finding.get("cut")
    stop = min(len(missed), max(last + 1, cut["kept"] + 4 if cut else 0))
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        axes.set_yscale("log")
        axes.plot(range(1, stop + 1), missed[:stop], color=KEPT)
        for count, share in {data["for_99"]: 99, data["for_998"]: 99.8}.items():
            axes.plot([count], [missed[count - 1]], "o", color=KEPT, markersize=5)
            note = f"{count} directions hold {share} %"
            axes.annotate(note, (count, missed[count - 1]), (7, 2), textcoords="offset points", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if cut and cut["removed"]:
            cut_line(axes, cut["kept"], f"{cut['kept']} coordinates kept", left=cut["kept"] > stop / 2)
        log_labels(axes.yaxis, percent=True)
        axes.set_xlabel(f"principal directions of {finding['width']}")
        axes.set_ylabel("variance of SiLU(c) missed")
        return svg(figure, "directions")


def search(found: dict) -> str:
    """Quality against the share cut, a mark per trial, filled where the demands held; the knee and what was taken."""
    trials = [trial for trial in found["trials"] if found["metric"] in trial["metrics"]]
    points = [(trial["share"], trial["metrics"][found["metric"]]) for trial in trials]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(WIDE)
        axes.plot(*zip(*points, strict=True), color=LINE, zorder=1)
        for flag, colour, marker in ((True, KEPT, "o"), (False, REMOVED, "x")):
            chosen = [point for point, trial in zip(points, trials, strict=True) if trial["holds"] is flag]
            if chosen:
                axes.scatter(*zip(*chosen, strict=True), s=28, c=colour, marker=marker, zorder=2)
        cut_line(axes, found["share"], "taken")
        if found["knee"] is not None and found["knee"] != found["share"]:
            cut_line(axes, found["knee"], "knee", left=found["knee"] < found["share"], height=0.1)
        axes.text(0.02, 0.96, "● holds", color=KEPT, ha="left", va="top", transform=axes.transAxes)
        axes.text(0.02, 0.87, "× does not", color=REMOVED, ha="left", va="top", transform=axes.transAxes)
        percent(axes.xaxis)
        axes.set_xlabel("share cut")
        axes.set_ylabel(found["metric"])
        return svg(figure, "search")


def _points(axes: Axes, points: list, colour: str, marker: str, count: int) -> None:
    """A mark per coordinate, or above 200 a thin stem, where marks would hide each other."""
    ranks, values = zip(*points, strict=True)
    if count <= MARKED:
        axes.scatter(ranks, values, s=16, c=colour, marker=marker, linewidths=1.0)
    else:
        axes.vlines(ranks, 0, values, colors=colour, linewidths=310 / count)


def _few(count: int) -> list[int]:
    if count <= 12:
        return list(range(count))
    return sorted({round(i * (count - 1) / 4) for i in range(5)})


def _cell_values(axes: Axes, matrix: list[list[float]]) -> None:
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("0.", ".", 1).replace("-", "−")
            colour = "white" if abs(value) > 0.7 else "#111111"
            text = text if i != j else "1"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=6.5, in_layout=False)
