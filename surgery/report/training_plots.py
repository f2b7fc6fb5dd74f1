"""Figures of a training: loss under its constraint, expected edges, the multiplier; and of induction scores."""

import matplotlib
from matplotlib.axes import Axes

from surgery.report import edges
from surgery.report.drawing import KEPT, LINE, MUTED, REMOVED, SQUARE, STYLE, cut_line, figure_of, log_labels, svg

NEAR = (4.0, 2.9)
"""Inches of a figure of three in a row."""
POINTS = 400
"""A longer history is drawn as the means of this many stretches."""
SPREAD, NARROW = 20.0, 3.0
"""Where the largest loss, or multiplier, is over so many times the smallest, the axis is logarithmic."""


def loss(found: dict, name: str = "training") -> str:
    """Loss of the batches and on held-out data, the dense model's and what is allowed as lines, the best state marked."""
    drawn, judged = thinned(found["history"], "loss"), edges.judged(found)
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(NEAR)
        axes.plot(*drawn, color=LINE, linewidth=1.2)
        flags = ((True, KEPT, "o"), (False, REMOVED, "x")) if found.get("target") is not None else ((None, KEPT, "o"),)
        for flag, colour, marker in flags:
            points = [(row["step"], row["held_out_loss"]) for row in judged if flag in (None, bool(row.get("feasible")))]
            if points:
                axes.scatter(*zip(*points, strict=True), s=18, c=colour, marker=marker, zorder=3)
        bounds = [(found[key], text) for key, text in (("target", "allowed"), ("dense", "dense")) if found.get(key) is not None]
        for value, text in bounds:
            axes.axhline(value, color=REMOVED if text == "allowed" else MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
        values = [*drawn[1], *(row["held_out_loss"] for row in judged), *(value for value, _ in bounds)]
        _scale(axes, values)
        _name_lines(axes, bounds)
        _best(axes, found)
        axes.set_xlabel("step")
        axes.set_ylabel(edges.loss_name(found))
        return svg(figure, f"{name}-loss")


def penalty(found: dict, requested: float | None = None, name: str = "training") -> str:
    """Expected share of possible edges that is kept, on a log axis, with what was asked for."""
    judged = [row for row in edges.judged(found) if row.get("held_out_penalty")]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(NEAR)
        axes.set_yscale("log")
        axes.plot(*thinned(found["history"], "penalty"), color=LINE, linewidth=1.2)
        if judged:
            places = [(row["step"], row["held_out_penalty"]) for row in judged]
            axes.scatter(*zip(*places, strict=True), s=18, c=KEPT, zorder=3)
        if requested is not None and requested < 1:
            axes.axhline(1 - requested, color=REMOVED, linewidth=1.2, linestyle=(0, (4, 2)))
            _name_lines(axes, [(1 - requested, "asked for")], percent=True)
        log_labels(axes.yaxis, percent=True, fine=True)
        _best(axes, found)
        axes.set_xlabel("step")
        axes.set_ylabel("edges expected to be kept")
        return svg(figure, f"{name}-edges")


def multiplier(found: dict, name: str = "training") -> str:
    """The multiplier of the constraint: it rises while the loss is over what is allowed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(NEAR)
        steps, values = thinned(found["history"], "multiplier")
        axes.plot(steps, values, color=KEPT)
        if max(values) > NARROW * min(values):
            axes.set_yscale("log")
            log_labels(axes.yaxis, fine=True)
        _best(axes, found)
        axes.set_xlabel("step")
        axes.set_ylabel("multiplier of the loss")
        return svg(figure, f"{name}-multiplier")


def induction(found: dict) -> str:
    """A mark per head: its induction score dense across, sparse up; on the diagonal nothing changed."""
    rows = edges.inductive(found)
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(SQUARE)
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
        axes.scatter([row["dense"] for row in rows], [row["sparse"] for row in rows], s=22, c=KEPT, zorder=3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_aspect("equal")
        axes.set_xlabel("dense")
        axes.set_ylabel("sparse")
        return svg(figure, "induction")


def thinned(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column, at most POINTS of them; rows that lack it are left out."""
    rows = [(row["step"], row[key]) for row in history if row.get(key) is not None]
    stretch = max(1, -(-len(rows) // POINTS))
    parts = [rows[start : start + stretch] for start in range(0, len(rows), stretch)]
    means = [[sum(column) / len(part) for column in zip(*part, strict=True)] for part in parts]
    return [step for step, _ in means], [value for _, value in means]


def _scale(axes: Axes, values: list[float]) -> None:
    least = min(values, default=0.0)
    if least > 0 and max(values) > SPREAD * least:
        axes.set_yscale("log")
        log_labels(axes.yaxis, fine=True)


def _name_lines(axes: Axes, lines: list[tuple[float, str]], *, percent: bool = False) -> None:
    """The upper line is named above it and the lower one below, since they may lie close together."""
    for place, (value, text) in enumerate(sorted(lines, reverse=True)):
        number = f"{100 * value:.3g} %" if percent else f"{value:.4g}"
        side, offset = ("bottom", 3) if place == 0 else ("top", -3)
        colour = MUTED if text == "dense" else REMOVED
        place_of = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right", "va": side}
        axes.annotate(f"{text} {number}", (0.995, value), (0, offset), color=colour, **place_of)


def _best(axes: Axes, found: dict) -> None:
    late = found["best_step"] > edges.steps(found) / 2
    cut_line(axes, found["best_step"], f"best, step {found['best_step']:,}", left=late, height=0.93)
