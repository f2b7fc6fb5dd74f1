"""What the page shows of attention edges, training and induction."""

from math import log10

from surgery.report import edges, wording
from surgery.report.charts import figure

FAINTEST = 1e-4
"""Share of edges that is drawn palest; a decade more is a quarter darker."""
NUMBERED = 16
"""Heads per layer up to which each cell of the table has room for its number."""
ROWS = (5, 6, 4)
"""Maps in a row, the first number that fills every row."""
OPEN = 64
"""Maps up to which all layers' are shown at once."""


def attention(document: dict) -> list[dict]:
    """Per finding: sentences, a table of layers and heads, and the maps of every head."""
    return [_attention(found) for found in edges.found_of(document, "edges")]


def training(document: dict) -> list[dict]:
    """Per finding: its summary, figures with captions, and what went wrong."""
    found = edges.found_of(document, "training")
    return [_training(document, one, f"training-{index}") for index, one in enumerate(found)]


def induction(document: dict) -> list[dict]:
    from surgery.report import training_plots

    caption = "A dot per head. Above the line the sparse model looks back more than the dense one did."
    return [
        {"figure": figure(training_plots.induction(found), caption), "rows": edges.inductive(found)[:8]}
        for found in edges.found_of(document, "induction")
    ]


def tile(document: dict) -> dict | None:
    """The number that says how sparse attention became."""
    off, found = edges.share_off(document), edges.found_of(document, "edges")
    if off is None:
        return None
    wanted = {row.get("requested") for row in found} - {None}
    asked = f"{wording.off(wanted.pop())} asked for" if len(wanted) == 1 else "of what was possible"
    return {"value": wording.off(off), "name": "attention edges off", "note": asked, "level": "none"}


def _attention(found: dict) -> dict:
    from surgery.report.edge_images import head_maps

    maps = [_layer_maps(group) for group in head_maps(found)]
    rows = [_row(site) for site in found["sites"]]
    widest = max(len(row["cells"]) for row in rows)
    return {
        "clause": found["clause"],
        "lead": ", ".join(filter(None, (edges.asked(found), edges.measured_on(found)))),
        "normalized": edges.NORMALIZED.get(found.get("normalize"), ""),
        "dead": edges.dead_sentence(found),
        "lowered": edges.lowered(found),
        "rows": rows,
        "heads": list(range(widest)),
        "numbered": widest <= NUMBERED,
        "maps": maps,
        "open": sum(len(layer["heads"]) for layer in maps) <= OPEN,
    }


def _row(site: dict) -> dict:
    mass, kept = edges.mean_mass(site), site["kept"]
    masses = site.get("mass") or [None] * len(kept)
    return {
        "name": edges.site_name(site),
        "site": site["site"],
        "cells": [_cell(head, *values) for head, values in enumerate(zip(kept, masses, strict=True))],
        "kept": wording.kept(sum(kept) / len(kept)),
        "mass": "–" if mass is None else f"{100 * mass:.1f} %",
    }


def _cell(head: int, kept: float, mass: float | None) -> dict:
    heat = 0.0 if kept <= 0 else min(1.0, max(0.06, 1 + log10(kept) / -log10(FAINTEST)))
    told = "" if mass is None else f", {100 * mass:.1f} % of the attention mass"
    return {
        "heat": round(heat, 3),
        "text": wording.kept(kept).removesuffix(" %") if kept else "dead",
        "title": f"head {head}: {wording.kept(kept)} of its edges kept{told}",
        "strong": heat > 0.55,
    }


def _layer_maps(group: dict) -> dict:
    site = group["site"]
    heads = [picture | _told(site, picture["head"]) for picture in group["heads"]]
    columns = next((count for count in ROWS if len(heads) % count == 0), ROWS[0])
    return {"name": edges.site_name(site), "heads": heads, "columns": min(columns, len(heads))}


def _told(site: dict, head: int) -> dict:
    kept = wording.kept(site["kept"][head])
    note = "dead" if head in (site.get("dead") or ()) else f"{kept} kept"
    alt = f"layer {edges.site_name(site)}, head {head}: dense attention left, kept edges right, {note}"
    return {"note": note, "alt": alt}


def _training(document: dict, found: dict, name: str) -> dict:
    from surgery.report import training_plots

    figures = [figure(training_plots.loss(found, name), _loss_caption(found))]
    if any(row.get("penalty") is not None for row in found["history"]):
        drawn = training_plots.penalty(found, _requested(document, found), name)
        figures.append(figure(drawn, "Share of the possible edges that gates are expected to keep, log scale."))
    if edges.multipliers(found):
        caption = f"It rises while the loss is over what is allowed: {edges.multipliers(found)}."
        figures.append(figure(training_plots.multiplier(found, name), caption))
    told = {"clause": found["clause"], "what": found["what"], "lead": edges.summary(found)}
    return told | {"figures": figures, "warnings": edges.warnings(found)}


def _loss_caption(found: dict) -> str:
    if found.get("target") is None:
        return "Loss of the batches that were learned from (grey) and on held-out rows (dots)."
    return (
        "Loss of the batches that were learned from (grey) and on held-out rows: dots where the constraint holds, crosses"
        " where it does not. The state with the fewest edges among the dots is kept."
    )


def _requested(document: dict, found: dict) -> float | None:
    same = [one for one in edges.found_of(document, "edges") if one["clause"] == found["clause"]]
    return same[0].get("requested") if same else None
