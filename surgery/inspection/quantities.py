"""Counts and bytes for people."""

from collections.abc import Iterable

from torch import Tensor

from surgery.verify.size import distinct


def count_text(count: int, noun: str) -> str:
    """`1 node`, `1,234 nodes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bytes_text(size: int) -> str:
    """Decimal units, three digits: `4.62 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"


def change_text(before: float, after: float) -> str:
    """`−34.0 %`; empty where there is nothing to relate to."""
    if not before or before == after:
        return ""
    return f"{(after - before) / before:+.1%}".replace("-", "−").replace("%", " %")


def weigh(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Entries and bytes of tensors; one that is tied under two names counts once."""
    once = list(distinct(tensors))
    return sum(tensor.numel() for tensor in once), sum(tensor.numel() * tensor.element_size() for tensor in once)
