"""Made-up findings of the kinds "edges", "training" and "induction", in the form that sparsify and heal leave them."""

import random
from math import exp

CLAUSE = "sparsify attention 99.6% via gates steps=4000"
PLACE = "gates.surgery:4:1"


def edges(layers: int = 4, heads: int = 8, size: int = 24, **changes) -> dict:
    """A finding whose first layer has two dead heads."""
    dice = random.Random(0)
    sites = [_site(dice, layer, heads, size) for layer in range(layers)]
    kept = [share for site in sites for share in site["kept"]]
    return {
        "kind": "edges",
        "clause": CLAUSE,
        "place": PLACE,
        "via": "gates",
        "normalize": "all",
        "requested": 0.996,
        "achieved": 1 - sum(kept) / len(kept),
        "length": 128,
        "rows": 64,
        "sites": sites,
    } | changes


def training(steps: int = 400, **changes) -> dict:
    """A training that meets its constraint from half way on, evaluated twenty times."""
    dice = random.Random(1)
    history = [_row(dice, step, steps) for step in range(1, steps + 1)]
    best = min((row for row in history if row.get("feasible")), key=lambda row: row["held_out_penalty"])
    return {
        "kind": "training",
        "clause": CLAUSE,
        "place": PLACE,
        "what": "gates",
        "history": history,
        "dense": 0.0042,
        "target": 0.0142,
        "best_step": best["step"],
        "state": "finished",
    } | changes


def healing(steps: int = 200) -> dict:
    """A training without a constraint."""
    rows = [{"step": row["step"], "loss": row["loss"]} for row in training(steps)["history"]]
    rows = [row | ({"held_out_loss": 1.1 * row["loss"]} if row["step"] % 20 == 0 else {}) for row in rows]
    told = {"clause": f"heal steps={steps}", "what": "heal", "history": rows, "target": None, "dense": None}
    rows.insert(0, {"step": 0, "held_out_loss": 0.04, "feasible": True})
    return training() | told | {"best_step": steps, "learned_from": "distillation"}


def induction(layers: int = 4, heads: int = 8) -> dict:
    dice = random.Random(2)
    sites = [{"site": f"blocks.{layer}.attention", "layer": layer, "dense": [], "sparse": []} for layer in range(layers)]
    for site in sites:
        site["dense"] = [dice.random() ** 6 for _ in range(heads)]
        site["sparse"] = [min(1.0, 1.1 * score) for score in site["dense"]]
    return {"kind": "induction", "sites": sites}


def _site(dice: random.Random, layer: int, heads: int, size: int) -> dict:
    kept = [10 ** dice.uniform(-4, -1.5) for _ in range(heads)]
    dead = [heads - 2, heads - 1] if layer == 0 else []
    kept = [0.0 if head in dead else share for head, share in enumerate(kept)]
    return {
        "site": f"blocks.{layer}.attention",
        "layer": layer,
        "heads": heads,
        "kept": kept,
        "mass": [0.0 if head in dead else dice.uniform(0.7, 1) for head in range(heads)],
        "dead": dead,
        "lowered": "dense attention, masked: edges are chosen per input",
        "map": {"size": size, "dense": _maps(dice, heads, size, 0.2, ()), "kept": _maps(dice, heads, size, 0.02, dead)},
    }


def _maps(dice: random.Random, heads: int, size: int, near: float, dead) -> list:
    def cell(head: int, query: int, key: int) -> int:
        if key > query or head in dead:
            return 0
        chance = near + (0.7 if key == query - 1 - head % 3 else 0.3 if key == 0 else 0)
        return dice.randrange(1, 256) if dice.random() < chance else 0

    return [[[cell(head, query, key) for key in range(size)] for query in range(size)] for head in range(heads)]


def _row(dice: random.Random, step: int, steps: int) -> dict:
    done = step / steps
    loss = 0.004 + 0.03 * exp(-6 * done) * dice.uniform(0.7, 1.3)
    row = {"step": step, "loss": loss, "penalty": 0.6 * exp(-6 * done), "multiplier": 1 + 3 * exp(-4 * done), "rate": 1e-3}
    if step % (steps // 20):
        return row
    held_out = 0.9 * loss
    return row | {"held_out_loss": held_out, "held_out_penalty": row["penalty"], "feasible": held_out <= 0.0142}
