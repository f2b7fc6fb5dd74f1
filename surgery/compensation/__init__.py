"""Which coordinates of a conditioning vector to keep, and how the rest is made up for: tensors in, tensors out."""

from surgery.compensation.criteria import activation, effect, magnitude, random, ranking
from surgery.compensation.greedy import Selection, consumer_gram, greedy
from surgery.compensation.grid import Grid
from surgery.compensation.least_squares import Compensated, least_squares, split, unchanged
from surgery.compensation.moments import Moments

__all__ = [
    "Compensated",
    "Grid",
    "Moments",
    "Selection",
    "activation",
    "consumer_gram",
    "effect",
    "greedy",
    "least_squares",
    "magnitude",
    "random",
    "ranking",
    "split",
    "unchanged",
]
