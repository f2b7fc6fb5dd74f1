"""How numbers are written, the same in the terminal and on the page."""

import re
from math import isfinite

PERCENT_METRICS = ("accuracy",)
NO_CHANGE = "0 %"
PHASES = {"prefill": "prefill of", "decode": "one token behind"}


def count(value: float) -> str:
    """1234567 → "1.23 M", 98765 → "98.8 k", 512 → "512"."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes in decimal units: 1928000 → "1.93 MB"."""
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def metric(name: str, value: float | None) -> str:
    """A measured value: accuracies in percent, from 0.01 to 10 four decimals, else three or four digits."""
    if value is None:
        return "–"
    if not isfinite(value):
        return str(value)
    if name in PERCENT_METRICS:
        return f"{100 * value:.1f} %"
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 10:
        return f"{value:.4f}"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return scientific(value)
    return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.4g}"


def measured(row: dict) -> str:
    """What a requirement measured, beside the original where it is compared with it."""
    value, before = row.get("measured"), row.get("before")
    if not isinstance(value, int | float):
        return "not measured"
    text = f"measured {count(value) if abs(value) >= 10_000 else f'{value:.4g}'}"
    return f"{text}, {value / before:.3f}× the original" if before else text


def scientific(value: float | None) -> str:
    """Two significant digits: 1.2e-07; None is what JSON has for NaN and infinity."""
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def run(row: dict) -> str:
    """What a latency row is of: "eager, batch 8"; "eager, batch 8, prefill of 512" where a length is known."""
    length = f", {PHASES.get(row.get('phase'), 'length')} {row['length']}" if "length" in row else ""
    return f"{row['mode']}, batch {row['batch']}{length}"


def times(ratio: float | None) -> str:
    """A ratio: 1.004 → "1.00×"."""
    return "–" if ratio is None else f"{ratio:.2f}×" if ratio < 100 else f"{ratio:.0f}×"


def change(before: float | None, after: float | None) -> str:
    """The relative change: (96, 33) → "−65.6 %"."""
    if not before or after is None:
        return "–"
    share = 100 * (after - before) / before
    if abs(share) < 0.05:
        return NO_CHANGE
    return f"{'−' if share < 0 else '+'}{abs(share):.1f} %"


def kept(share: float) -> str:
    """A share that may be tiny, two significant digits of it: 0.00413 → "0.41 %", 0 → "0 %"."""
    text = f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.3g}"
    return f"{float(text):g} %" if abs(share) >= 1e-6 or share == 0 else f"{100 * share:.1e} %"


def off(share: float) -> str:
    """A share that may be close to one, as exact as what is left of it: 0.99587 → "99.59 %", 0.9 → "90 %"."""
    left = 100 * (1 - share)
    digits = 1 if left >= 1 else 2 if left >= 0.1 else 3 if left >= 0.01 else 4
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.')} %"


def numbers(values: list[int]) -> str:
    """[4, 5, 6, 9] → "4..6, 9"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    told = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(told)


def signed(value: float, digits: int = 3) -> str:
    """A number that may be negative, with a true minus and without a minus zero: -0.1101 → "−0.110"."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def shape(dimensions: list[int]) -> str:
    return " × ".join(map(str, dimensions)) or "scalar"


def plural(number: int, noun: str) -> str:
    """(1, "layer") → "1 layer", (3, "layer") → "3 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def attributes(before: dict, after: dict) -> str:
    """What an action changes: ({"width": 96}, {"width": 33}) → "width 96 → 33"."""
    names = [name for name in before if before[name] != after.get(name)] or list(before)
    return ", ".join(f"{name} {before[name]} → {after.get(name, '–')}" for name in names)


def amount(value: object) -> float | None:
    """What an action counts in: a number, or a share as it is written: "0.4%"; None for other words."""
    if isinstance(value, str) and re.fullmatch(r"[\d.]+ ?%", value):
        return float(value.rstrip("% "))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _three(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
