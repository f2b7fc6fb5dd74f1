"""Which coordinates of a conditioning vector to keep, and how the rest is made up for: tensors in, tensors out."""

from surgery.compensation.conditioning import Conditioning
from surgery.compensation.criteria import activation, effect, magnitude, random, ranking
from surgery.compensation.greedy import Selection, consumer_gram, greedy
from surgery.compensation.grid import Grid
from surgery.compensation.least_squares import Compensated, least_squares, split, unchanged
from surgery.compensation.match import Matched, match
from surgery.compensation.moments import Moments
from surgery.compensation.refit import Refit, refit

__all__ = [
    "Compensated",
    "Conditioning",
    "Grid",
    "Matched",
    "Moments",
    "Refit",
    "Selection",
    "activation",
    "consumer_gram",
    "effect",
    "greedy",
    "least_squares",
    "magnitude",
    "match",
    "random",
    "ranking",
    "refit",
    "split",
    "unchanged",
]
