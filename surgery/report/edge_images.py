"""Maps of attention edges as PNG data URIs: a head's mean dense attention beside the edges that are kept."""

import numpy

from surgery.report.images import indexed

STEPS = 48
DENSE, KEPT = (107, 118, 135), (0, 122, 194)
"""Grey and blue that are told apart from each other on a light page and on a dark one; a low value is transparent."""
FAINTEST, EMPTY = 0.25, 26
APART = 12
"""The gap between two maps is this fraction of their side."""


def head_maps(found: dict) -> list[dict]:
    """A group per site: {"site", "heads": [{"head", "source", "alt"}]}; sites without a map are left out.

    Each picture is two maps [size, size], queries down and keys across: dense mean attention left, kept edges right.
    Each on a scale of its own, the square root of the value, so that faint edges are seen.
    """
    groups = []
    for site in found["sites"]:
        if not site.get("map"):
            continue
        pairs = zip(site["map"]["dense"], site["map"]["kept"], strict=True)
        pictures = [{"head": head, "source": _picture(*pair)} for head, pair in enumerate(pairs)]
        groups.append({"site": site, "heads": pictures})
    return groups


def _picture(dense: list, kept: list) -> str:
    left, right = _levels(dense), _levels(kept)
    gap = numpy.zeros((len(left), -(-len(left) // APART)), dtype=numpy.uint8)
    right = numpy.where(right > 1, right + STEPS, right).astype(numpy.uint8)
    return indexed(numpy.concatenate([left, gap, right], axis=1), _palette())


def _levels(values: list) -> numpy.ndarray:
    """1 for none, else 2 .. STEPS + 1 by the square root of the value over the largest."""
    found = numpy.asarray(values, dtype=numpy.float64)
    scaled = numpy.sqrt(found / max(found.max(), 1.0))
    return numpy.where(found > 0, 1 + numpy.ceil(scaled * STEPS).clip(1, STEPS), 1).astype(numpy.uint8)


def _palette() -> list[tuple[int, int, int, int]]:
    shades = [round(255 * (FAINTEST + (1 - FAINTEST) * step / STEPS)) for step in range(1, STEPS + 1)]
    return [(0, 0, 0, 0), (*DENSE, EMPTY), *((*DENSE, alpha) for alpha in shades), *((*KEPT, alpha) for alpha in shades)]
