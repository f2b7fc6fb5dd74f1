"""What findings about edges of attention, about training and about induction say: in words, for terminal and page."""

from statistics import fmean, median
from typing import Any

from surgery.report import wording

MARKS = "·░▒▓█"
DECADES, QUARTERS = (0.0, 0.001, 0.01, 0.1), (0.0, 0.25, 0.5, 0.75)
"""A head's mark by the share of its possible edges that is kept: that of the first limit it does not exceed, or the
last. Quarters where most heads keep over a tenth."""

NORMALIZED = {
    "all": (
        "normalize=all: the softmax still runs over all keys, then edges that are off are set to 0 and their weight is"
        " lost: a row of attention sums to less than 1"
    ),
    "kept": (
        "normalize=kept: the softmax runs over the kept keys alone: what the others had is shared out among them, so the"
        " result differs from the dense one by more than the weight that was cut"
    ),
}


def found_of(document: dict, kind: str) -> list[dict]:
    """Every finding of a kind, in the order of the report."""
    return [found for found in document.get("findings", ()) if found["kind"] == kind]


def share_off(document: dict) -> float | None:
    """Share of the possible edges that is off, over the heads of every finding alike; None where edges are not cut."""
    kept = [share for found in found_of(document, "edges") for site in found["sites"] for share in site["kept"]]
    return 1 - fmean(kept) if kept else None


def asked(found: dict) -> str:
    """What was asked for beside what was reached: "99.6 % of the edges were to go, 99.87 % are off"."""
    reached = f"{wording.off(found['achieved'])} of the possible edges are off"
    wanted = found.get("requested")
    return reached if wanted is None else f"{wording.off(wanted)} asked for, {reached}"


def measured_on(found: dict) -> str:
    """The rows that kept edges and attention mass were counted on."""
    if not found.get("rows") or not found.get("length"):
        return ""
    return f"counted on {wording.plural(found['rows'], 'row')} of {wording.plural(found['length'], 'token')}"


def limits(found: dict) -> tuple[float, ...]:
    """The scale of a finding's marks."""
    shares = [share for site in found["sites"] for share in site["kept"] if share]
    return QUARTERS if shares and median(shares) > DECADES[-1] else DECADES


def mark(share: float, scale: tuple[float, ...] = DECADES) -> str:
    """A head in a strip."""
    return next((sign for limit, sign in zip(scale, MARKS, strict=False) if share <= limit), MARKS[-1])


def legend(found: dict) -> str:
    """The marks that occur in the strips of a finding."""
    scale = limits(found)
    used = {mark(share, scale) for site in found["sites"] for share in site["kept"]}
    names = ["none kept", *(f"under {wording.kept(limit)}" for limit in scale[1:]), f"{wording.kept(scale[-1])} or more"]
    return ", ".join(f"{sign} {name}" for sign, name in zip(MARKS, names, strict=True) if sign in used)


def site_name(site: dict) -> str:
    """The layer's number where it is known, else the site's own name."""
    return site["site"] if site.get("layer") is None else str(site["layer"])


def mean_mass(site: dict) -> float | None:
    known = [value for value in site.get("mass") or () if value is not None]
    return fmean(known) if known else None


def dead(found: dict) -> list[tuple[str, list[int]]]:
    """Layers with heads that no edge is left of, and those heads."""
    return [(site_name(site), list(site["dead"])) for site in found["sites"] if site.get("dead")]


def dead_sentence(found: dict) -> str:
    """ "5 of 32 heads are dead: 4..7 of layer 0; 2 of layer 3"."""
    rows = dead(found)
    if not rows:
        return ""
    count, heads = sum(len(those) for _, those in rows), sum(len(site["kept"]) for site in found["sites"])
    named = "; ".join(f"{wording.numbers(those)} of layer {name}" for name, those in rows)
    return f"{count} of {wording.plural(heads, 'head')} {'is' if count == 1 else 'are'} dead: {named}"


def lowered(found: dict) -> list[str]:
    """What layers were lowered to and why, those of one sentence together."""
    groups: dict[str, list[str]] = {}
    for site in found["sites"]:
        if site.get("lowered"):
            groups.setdefault(site["lowered"], []).append(site_name(site))
    return [f"{_layers(names)}: {text}" for text, names in groups.items()]


def lowered_briefly(found: dict) -> list[str]:
    """The same, a sentence per form, "edge" or "dense", with the numbers of the first of its layers."""
    groups: dict[str, list[dict]] = {}
    for site in found["sites"]:
        if site.get("lowered"):
            groups.setdefault(site["lowered"].partition(":")[0], []).append(site)
    told = []
    for sites in groups.values():
        alike = len({site["lowered"] for site in sites}) == 1
        those = f" (of {_layers([site_name(sites[0])])})" if not alike else ""
        told.append(f"{_layers([site_name(site) for site in sites])}: {sites[0]['lowered']}{those}")
    return told


def summary(found: dict) -> str:
    """How a training ended, in one line of numbers."""
    best = best_row(found)
    parts = [f"best at step {found['best_step']:,} of {wording.plural(steps(found), 'step')}"]
    if best and best.get("held_out_loss") is not None:
        parts.append(f"held-out {loss_name(found)} {wording.metric('loss', best['held_out_loss'])}")
    first = next((row["held_out_loss"] for row in judged(found) if row["step"] == 0), None)
    parts += [] if first is None else [f"{wording.metric('loss', first)} at the beginning"]
    parts += [f"dense {wording.metric('loss', found['dense'])}"] if found.get("dense") is not None else []
    parts += [f"allowed {wording.metric('loss', found['target'])}"] if found.get("target") is not None else []
    if best and best.get("held_out_penalty") is not None:
        parts.append(f"{wording.kept(best['held_out_penalty'])} of the edges expected")
    return ", ".join(parts)


def loss_name(found: dict) -> str:
    """What a training made smaller: the data's loss, or how far the outputs are from the original's."""
    return "distance" if found.get("learned_from") == "distillation" else "loss"


def steps(found: dict) -> int:
    return max((row["step"] for row in found["history"]), default=0)


def best_row(found: dict) -> dict[str, Any] | None:
    """The row of the history that the kept state comes from; None for the beginning."""
    return next((row for row in found["history"] if row["step"] == found["best_step"]), None)


def judged(found: dict) -> list[dict[str, Any]]:
    """Rows of the history in which the state was evaluated on held-out data."""
    return [row for row in found["history"] if row.get("held_out_loss") is not None]


def warnings(found: dict) -> list[str]:
    """What went wrong in a training: it stopped, its constraint was never met, or its multiplier hit a bound."""
    told = [] if found.get("state") in (None, "finished") else [f"training {found['state']}"]
    rows = judged(found)
    if found.get("target") is None or not rows:
        return told
    if not any(row.get("feasible") for row in rows):
        told.append("no evaluated state met the constraint: the one with the lowest held-out loss was kept")
    elif found["best_step"] == 0:
        told.append("no later state that met the constraint kept fewer edges: weights are as they were at the beginning")
    return told


def multipliers(found: dict) -> str:
    values = [row["multiplier"] for row in found["history"] if row.get("multiplier") is not None]
    return f"multiplier between {min(values):.2g} and {max(values):.2g}, {values[-1]:.2g} at the end" if values else ""


def inductive(found: dict) -> list[dict[str, Any]]:
    """Heads by induction score, the highest of dense or sparse first: {"head", "dense", "sparse"}."""
    rows = [
        {"head": f"layer {site_name(site)} head {head}", "dense": dense, "sparse": sparse}
        for site in found["sites"]
        for head, (dense, sparse) in enumerate(zip(site["dense"], site["sparse"], strict=True))
    ]
    return sorted(rows, key=lambda row: -max(row["dense"], row["sparse"]))


def _layers(names: list[str]) -> str:
    if not all(name.isdigit() for name in names):
        return ", ".join(names)
    return f"layer{'' if len(names) == 1 else 's'} {wording.numbers([int(name) for name in names])}"
