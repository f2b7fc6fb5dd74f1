"""Places of values on a horizontal axis, in percent of its width."""

import math
from collections.abc import Sequence

STEPS = (1, 2, 5)


def logarithmic(values: Sequence[float]) -> tuple[list[float], list[dict]]:
    """Places of positive values on a log axis and its ticks [{"at", "label"}]; zeros sit at the left end."""
    positive = [value for value in values if value > 0]
    if not positive:
        return [0.0] * len(values), []
    low, high = math.log10(min(positive)) - 0.08, math.log10(max(positive)) + 0.08
    places = [_place(math.log10(value), low, high) if value > 0 else 0.0 for value in values]
    steps = STEPS if high - low < 2 else (1,)
    candidates = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    ticks = [tick for tick in candidates if low <= math.log10(tick) <= high]
    return places, [{"at": _place(math.log10(tick), low, high), "label": f"{tick:g}"} for tick in ticks]


def linear(values: Sequence[float], low: float, high: float, ticks: Sequence[float]) -> tuple[list[float], list[dict]]:
    """Places of values between `low` and `high` and the ticks as given."""
    places = [_place(value, low, high) for value in values]
    return places, [{"at": _place(tick, low, high), "label": f"{tick:g}"} for tick in ticks]


def _place(value: float, low: float, high: float) -> float:
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)
