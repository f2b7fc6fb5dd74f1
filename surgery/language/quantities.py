"""Numbers with units. Plain arithmetic: nothing here knows of the tree."""

import math
import re
from dataclasses import dataclass

NUMBER = re.compile(r"(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)(?P<unit>%|[^\W\d_]*)")


@dataclass(frozen=True)
class Unit:
    """`scale / per` brings a number to the base of its measure: a fraction, a ratio, seconds, bytes, a plain number.

    Two whole numbers, so that 95% is the same float as 0.95.
    """

    measure: str
    scale: int
    per: int = 1


UNITS = {
    "": Unit("number", 1),
    "k": Unit("number", 1000),
    "M": Unit("number", 10**6),
    "G": Unit("number", 10**9),
    "%": Unit("share", 1, 100),
    "x": Unit("ratio", 1),
    "ns": Unit("time", 1, 10**9),
    "us": Unit("time", 1, 10**6),
    "ms": Unit("time", 1, 10**3),
    "s": Unit("time", 1),
    "min": Unit("time", 60),
    "h": Unit("time", 3600),
    "B": Unit("bytes", 1),
    "KB": Unit("bytes", 10**3),
    "MB": Unit("bytes", 10**6),
    "GB": Unit("bytes", 10**9),
    "TB": Unit("bytes", 10**12),
    "KiB": Unit("bytes", 2**10),
    "MiB": Unit("bytes", 2**20),
    "GiB": Unit("bytes", 2**30),
    "TiB": Unit("bytes", 2**40),
}


def split_number(text: str) -> tuple[int | float, str]:
    """The number and the unit of a quantity's text. Raises ValueError where it overflows a double."""
    match = NUMBER.fullmatch(text)
    if not match:
        raise ValueError(text)
    digits = match["number"]
    whole = re.fullmatch(r"[-+]?\d+", digits)
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return (int(digits) if whole else number), match["unit"]


def number_text(number: float) -> str:
    """The shortest text that reads back as the same number."""
    if isinstance(number, int) or (number.is_integer() and abs(number) < 1e15):
        return str(int(number))
    return repr(number)
