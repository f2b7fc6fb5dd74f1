"""Edges of attention, training and induction in a terminal."""

from rich.text import Text

from surgery.report import edges, wording
from surgery.report.sheet import Sheet

STRIP = 32
HISTORY = 6
HEADS = 6


def edges_section(sheet: Sheet, found: dict) -> None:
    """A line per layer: a mark per head, what is kept of edges and of attention mass; then what it means."""
    sheet.heading("attention edges", found["clause"])
    for text in filter(None, (edges.asked(found), edges.measured_on(found))):
        sheet.line(f"  {text}")
    columns = ["layer", "heads", "kept", "per head", "mass kept"]
    sheet.table(columns, [_layer_row(sheet, site, edges.limits(found)) for site in found["sites"]], left=2)
    told = [f"heads: {edges.legend(found)}", edges.dead_sentence(found), *edges.lowered_briefly(found)]
    for text in filter(None, (*told, edges.NORMALIZED.get(found.get("normalize"), ""))):
        sheet.line(f"  {text}", "dim")


def training_section(sheet: Sheet, found: dict) -> None:
    """The best state against what was allowed, and a few evaluated steps on the way to it."""
    sheet.heading("training", f"{found['what']}: {found['clause']}")
    sheet.line(f"  {edges.summary(found)}")
    rows = edges.judged(found)
    if rows:
        constrained = any(row.get("penalty") is not None for row in rows)
        columns = ["step", "loss", "held out", *(["edges expected", "multiplier"] if constrained else []), ""]
        sheet.table(columns, [_history_row(sheet, found, row, constrained) for row in _few(found, rows)])
    if edges.multipliers(found):
        sheet.line(f"  {edges.multipliers(found)}", "dim")
    for text in edges.warnings(found):
        sheet.line(f"  {text}", "yellow")


def induction_section(sheet: Sheet, found: dict) -> None:
    """The heads that look most at what followed the last time, dense against sparse."""
    rows = edges.inductive(found)
    sheet.heading("induction", "attention to what followed the same token the last time")
    shown = [[row["head"], f"{row['dense']:.3f}", f"{row['sparse']:.3f}"] for row in rows[:HEADS]]
    sheet.table(["", "dense", "sparse"], shown)
    if len(rows) > HEADS:
        sheet.line(f"  {wording.plural(len(rows) - HEADS, 'head')} with lower scores not shown", "dim")


def _layer_row(sheet: Sheet, site: dict, scale: tuple[float, ...]) -> list[str | Text]:
    kept, mass = site["kept"], edges.mean_mass(site)
    marks = "".join(edges.mark(share, scale) for share in kept)
    strip = "\n".join(marks[start : start + STRIP] for start in range(0, len(marks), STRIP))
    span = f"{wording.kept(min(kept))} to {wording.kept(max(kept))}"
    mean = wording.kept(sum(kept) / len(kept))
    return [edges.site_name(site), sheet.text(strip, "blue"), mean, span, "–" if mass is None else f"{100 * mass:.1f} %"]


def _history_row(sheet: Sheet, found: dict, row: dict, constrained: bool) -> list[str | Text]:
    values = [wording.metric("loss", row.get(name)) for name in ("loss", "held_out_loss")]
    if constrained:
        penalty, multiplier = row.get("held_out_penalty", row.get("penalty")), row.get("multiplier")
        values += ["–" if penalty is None else wording.kept(penalty)]
        values += ["–" if multiplier is None else f"{multiplier:.2g}"]
    told = "best" if row["step"] == found["best_step"] else ""
    if found.get("target") is not None and not row.get("feasible"):
        told = "over what is allowed"
    return [f"{row['step']:,}", *values, sheet.text(told, "green" if told == "best" else "yellow")]


def _few(found: dict, rows: list[dict]) -> list[dict]:
    """The first, the last, the best, and some between."""
    if len(rows) <= HISTORY:
        return rows
    places = {round(index * (len(rows) - 1) / (HISTORY - 1)) for index in range(HISTORY)}
    return [row for place, row in enumerate(rows) if place in places or row["step"] == found["best_step"]]
