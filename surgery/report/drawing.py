"""The style of the figures of a report: SVG text whose colours follow the page's theme, the same bytes every time."""

import io
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

INK, MUTED, LINE = "#1f2430", "#5b6472", "#d5d9e0"
KEPT, REMOVED, THIRD = "#0067a5", "#b04506", "#007a5a"
THEMED = {INK: "ink", MUTED: "muted", LINE: "line", KEPT: "kept", REMOVED: "removed", THIRD: "third"}
"""Colours written as CSS variables, with the colour itself where no page defines them. Safe for colour-blind eyes."""

STYLE = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "surgery",
    "path.simplify": False,
}
WIDE, SQUARE = (5.0, 3.0), (3.3, 3.3)


def figure_of(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that scales with its place; ids carry `name`, so that figures share a page."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'id="(?:figure|axes|patch|text|line2d|matplotlib\.\w+|xtick|ytick|PathCollection)_\w+"', "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"|( height="[\d.]+pt")|( width="[\d.]+pt")', "", text, count=2)
    for colour, variable in THEMED.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text.strip()


def log_labels(axis, *, percent: bool = False, fine: bool = False) -> None:
    """Numbers at decades; with `fine` at 2 and 5 of each as well, where the axis spans fewer than two."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(numticks=7, subs=(1, 2, 5) if fine and high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %" if percent else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def percent(axis) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def cut_line(axes: Axes, at: float, note: str, *, left: bool = False, height: float = 0.0) -> None:
    axes.axvline(at, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    offset = (-4 if left else 4, 4)
    axes.annotate(
        note,
        (at, height),
        offset,
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        color=MUTED,
        ha="right" if left else "left",
    )


def curve_name(axes: Axes, x: Sequence, y: Sequence, height: float, name: str, colour: str, *, above: bool) -> None:
    index = next((i for i, value in enumerate(y) if value >= height), len(y) - 1)
    offset, side = ((-6, 0), "right") if above else ((8, -4), "left")
    axes.annotate(name, (x[index], y[index]), offset, textcoords="offset points", color=colour, ha=side)
