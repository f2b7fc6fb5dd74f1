"""What the numbers of a document mean: the one place that judges, for the terminal and for the page."""

from dataclasses import dataclass
from math import exp

from surgery.report import edges, wording
from surgery.report.document import finding

SAME, WORSE = 1.02, 1.10
SAME_POINTS, WORSE_POINTS = 0.01, 0.03
JUDGEMENT = "up to 1.02× or one point of accuracy counts as the same, up to 1.10× or three points as slightly worse"
"""How a change for the worse is called, in the words of the page."""
SMALL_LOSS = 0.1
LEADING = ("accuracy", "frechet")
FASTER, SLOWER = 1.05, 0.95
EDGE = 1e-9
"""A change of exactly one point is still the same, whatever its last bit says."""


@dataclass(frozen=True)
class Verdict:
    """`level` is "good", "fair", "poor" or "none"; `ratio` is after / before; `word` says it without colour."""

    level: str
    word: str
    ratio: float | None


def judge(row: dict) -> Verdict:
    """Judge one row of `quality`: by its spread where it has one, else by the ratio."""
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return Verdict("none", "", None)
    ratio = after / before if before else None
    if row.get("spread") and abs(after - before) <= row["spread"]:
        return Verdict("good", "within spread", ratio)
    if row["metric"] in wording.PERCENT_METRICS:
        return Verdict(*_grade(before - after, SAME_POINTS, WORSE_POINTS, -SAME_POINTS), ratio)
    cost = exp(min(after - before, 1.0)) if small_loss(row) else _cost(before, after, row.get("better", "lower"))
    if cost is None:
        return Verdict("none", "", ratio)
    return Verdict(*_grade(cost, SAME, WORSE, 1 / SAME), ratio)


def small_loss(row: dict) -> bool:
    """A cross-entropy so near to zero that its multiples say nothing: it is told, and judged, by its rise in nats,
    which is the ratio of perplexities."""
    return row["metric"] == "loss" and row["before"] is not None and 0 <= row["before"] < SMALL_LOSS


def proven(document: dict) -> bool:
    """Whether every parity check and every requirement holds."""
    checks = [*document.get("parity", ()), *document.get("requirements", ())]
    return all(row["holds"] for row in checks)


def speed(row: dict) -> float | None:
    """How many times faster a latency row became, by its own ratio or before / after; None where not measured."""
    if "skipped" in row or not row.get("after_ms"):
        return None
    return row.get("ratio") or row["before_ms"] / row["after_ms"]


def not_faster(document: dict) -> list[str]:
    """A sentence for every mode and batch that gained less than 1.05× or not for sure, with the reason if known."""
    rows = [(row, speed(row)) for row in document.get("latency") or ()]
    return [
        f"{_pace(gain)}: {wording.run(row)} ({wording.times(gain)}): {_reason(document, row, gain)}"
        for row, gain in rows
        if gain is not None and (gain < FASTER or row.get("note"))
    ]


def cut_alone(document: dict) -> list[str]:
    """A sentence for every row that also knows the uncut graph: what of the gain is the cut's own."""
    rows = [row for row in document.get("latency") or () if row.get("cut_ratio") and speed(row)]
    return [
        f"{wording.run(row)}: running as a graph gives "
        f"{wording.times(speed(row) / row['cut_ratio'])}, the cut {wording.times(row['cut_ratio'])}"
        for row in rows
    ]


def resized(change: dict) -> bool:
    """Whether a size changed enough to be told as a share: a few biases of gates are no change of a model's size."""
    return bool(change["before"]) and wording.change(change["before"], change["after"]) not in ("–", wording.NO_CHANGE)


def headline(document: dict) -> str:
    """The result in one line."""
    if not any(document.get(key) for key in ("actions", "quality", "requirements")):
        return _embedding_fact(finding(document, "embeddings"))
    facts = [*_size_fact(document), *_edges_fact(document), *_quality_facts(document), *_speed_fact(document), _proof_fact(document)]
    return " · ".join(fact for fact in facts if fact)


def leading(document: dict) -> list[dict]:
    """Quality rows with a before and an after to compare, the ones that say most first."""
    rows = [row for row in document.get("quality") or () if row["before"] and row["after"] is not None]
    return sorted(rows, key=lambda row: LEADING.index(row["metric"]) if row["metric"] in LEADING else len(LEADING))


def sorted_controls(document: dict) -> tuple[str | None, list[dict]]:
    """The metric that controls are ordered by, and the controls, best first; those without it come last."""
    controls = document.get("controls") or []
    better = {row["metric"]: row.get("better", "lower") for row in document.get("quality") or ()}
    present = {name for control in controls for name in control["metrics"]}
    key = next((name for name in ("frechet", *better, *sorted(present)) if name in present), None)
    sign = -1 if better.get(key) == "higher" else 1
    ordered = sorted(controls, key=lambda c: (key not in c["metrics"], sign * c["metrics"].get(key, 0), c["name"]))
    return key, ordered


def _grade(cost: float, same: float, worse: float, better: float) -> tuple[str, str]:
    if cost > worse + EDGE:
        return "poor", "worse"
    if cost > same + EDGE:
        return "fair", "slightly worse"
    return "good", "better" if cost < better - EDGE else "same"


def _cost(before: float, after: float, better: str) -> float | None:
    if before == after:
        return 1.0
    if before <= 0 or after < 0:
        return None
    if better == "higher":
        return before / after if after else float("inf")
    return after / before


def _pace(gain: float) -> str:
    return "slower" if gain < SLOWER else "not faster" if gain < FASTER else "not faster for sure"


def _reason(document: dict, row: dict, gain: float) -> str:
    if row.get("why") or row.get("note"):
        return row.get("why") or row["note"].removeprefix("not faster: ")
    if gain < SLOWER:
        return "no reason was recorded"
    flops = (document.get("size") or {}).get("flops")
    if not flops or not flops["after"] or not flops["before"]:
        return "no reason was recorded"
    possible = flops["before"] / flops["after"]
    if possible < FASTER:
        return f"arithmetic fell by only {wording.times(possible)}, so there is little to gain"
    return f"arithmetic fell {wording.times(possible)}, but at this size fixed costs per operation outweigh it"


def _size_fact(document: dict) -> list[str]:
    change = (document.get("size") or {}).get("parameters")
    if not change or not resized(change):
        return []
    return [f"{wording.change(change['before'], change['after'])} parameters"]


def _edges_fact(document: dict) -> list[str]:
    off = edges.share_off(document)
    return [] if off is None else [f"{wording.off(off)} of attention edges off"]


def _quality_facts(document: dict) -> list[str]:
    facts = []
    for row in leading(document)[:2]:
        if row["metric"] in wording.PERCENT_METRICS or small_loss(row):
            after = wording.metric(row["metric"], row["after"])
            facts.append(f"{row['metric']} {wording.metric(row['metric'], row['before'])} → {after}")
        else:
            facts.append(f"{row['metric']} {wording.times(row['after'] / row['before'])}")
    return facts


def _speed_fact(document: dict) -> list[str]:
    gains = [(speed(row), row) for row in document.get("latency") or () if speed(row) is not None]
    if not gains:
        return []
    gain, row = max(gains, key=lambda pair: pair[0])
    if gain < FASTER:
        return ["not faster here"]
    own = f", {wording.times(row['cut_ratio'])} of it the cut" if row.get("cut_ratio") else ""
    return [f"{wording.times(gain)} faster ({wording.run(row)}{own})"]


def _proof_fact(document: dict) -> str:
    failed = [row for row in document.get("requirements", ()) if not row["holds"]]
    if failed:
        return f"{wording.plural(len(failed), 'requirement')} failed"
    if not all(row["holds"] for row in document.get("parity", ())):
        return "parity failed"
    return "proven" if document.get("parity") or document.get("requirements") else ""


def _embedding_fact(found: dict | None) -> str:
    if found is None:
        return ""
    data, signed = found["similarity"], wording.signed
    return (
        f"class cosine {signed(data['c']['mean'])} with the shared t, {signed(data['y']['mean'])} without it"
        f" · {found['directions']['for_99']} of {found['width']} directions hold 99 % of the variance"
    )
