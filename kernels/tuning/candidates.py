"""What may be faster than a row: the same kernel with other warps, other stages, one block size halved or doubled.

Whether a candidate is right is not decided here: those that spill or do not fit are dropped by what they use compiled
ahead, those that a launcher cannot serve by their results.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from surgery.kernels.tuning.pick import Config

WARPS = (2, 4, 8)
STAGES = {"sm80": (1, 2, 3, 4), "sm90": (1, 2, 3, 4), "gfx942": (1, 2)}
SMALLEST, LARGEST = 16, 256


def neighbours(row: Config, arch: str) -> tuple[Config, ...]:
    """The row itself first, then its candidates for an architecture, each once."""
    stages = sorted({row.num_stages, *STAGES[arch]})
    warps = sorted({row.num_warps, *WARPS})
    found = [
        replace(row, blocks=blocks, num_warps=each, num_stages=depth)
        for blocks, each, depth in product(_sizes(row), warps, stages)
    ]
    return tuple([row, *(each for each in found if each != row)])


def _sizes(row: Config) -> Iterator[dict[str, int]]:
    yield dict(row.blocks)
    for name, size in row.blocks.items():
        for other in (size // 2, size * 2):
            if SMALLEST <= other <= LARGEST:
                yield {**row.blocks, name: other}
