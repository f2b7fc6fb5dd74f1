"""Distil the conditioning path into a narrower one: the kept coordinates themselves may move."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.compensation.conditioning import Conditioning
from surgery.compensation.distance import Distance, NarrowPath, principal
from surgery.compensation.greedy import consumer_gram
from surgery.compensation.least_squares import Compensated, least_squares
from surgery.compensation.moments import Moments

STRIDE = 20  # iterations between two reports of progress
ROUND = 60  # iterations on one draw of pairs, where the grid is too large to be taken whole
SILENT = 1e-4  # share of the least-squares error that directions left out of the descent may hold together

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Refit:
    """A narrower conditioning path, its consumers, and what they leave unexplained of the old ones' variance.

    conditioning  computes c' [n]     weight W' [M, n], bias b' [M]
    before        error of `least_squares` on the same coordinates
    error         error after the refit, never above `before`
    """

    conditioning: Conditioning
    weight: Tensor
    bias: Tensor
    before: float
    error: float


def refit(
    conditioning: Conditioning,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    *,
    importance: Tensor | None = None,
    iterations: int = 600,
    limit: int = 8192,
    ridge: float = 1e-6,
    seed: int = 0,
    seconds: float = math.inf,
    progress: Progress | None = None,
) -> Refit:
    """Narrow c to the coordinates `keep` [n], then move A', a', E' and W', b' until the consumers see what they saw.

        min  Σ_(t,y) w(t,y) Σ_m ω_m (W act(c) + b − W' act(c') − b')_m²,   c' = A' h(t) + a' + E'[y]

    W' and b' enter linearly and are eliminated: they are the least-squares solution for every c' on the way
    (variable projection, Golub & Pereyra 1973); L-BFGS in float64 moves the rest. No data is needed, for c depends
    on (t, y) alone, and nothing is added at run time: shapes and cost are those of `least_squares`.

    weight [M, D], bias [M]; importance ω [M], 1 each when not given. A grid of more than `limit` pairs is sampled,
    afresh every 60 iterations; W', b' and both errors are of the whole grid. The same seed gives the same result,
    unless `seconds` cuts it short. progress(iteration, error) is called every 20 iterations.
    """
    gram = consumer_gram(weight, importance)
    moments = Moments.gather(conditioning.features())
    plain = least_squares(moments, weight, bias, keep, ridge=ridge, gram=gram)
    path = NarrowPath.of(conditioning, keep)
    target = principal(moments.covariance, gram, SILENT * plain.error)
    penalty = ridge * float(moments.covariance.diagonal().mean())
    draw = torch.Generator().manual_seed(seed)
    end = time.monotonic() + seconds
    length = max(1, iterations) if conditioning.counted <= limit else ROUND
    for first in range(0, iterations, length):
        distance = Distance.of(conditioning, target, conditioning.pairs(limit, draw), penalty)
        _descend(path, distance, range(first, min(first + length, iterations), STRIDE), end, progress)
    narrow = path.conditioning()
    final = _consumers(conditioning, narrow, weight, bias, gram, ridge)
    if not final.error < plain.error:
        return Refit(conditioning.keep(keep), plain.weight, plain.bias, plain.error, plain.error)
    return Refit(narrow, final.weight, final.bias, plain.error, final.error)


def _descend(path: NarrowPath, distance: Distance, steps: range, end: float, progress: Progress | None) -> None:
    """L-BFGS on the variables of `path`, in place, a stride at a time."""
    optimizer = torch.optim.LBFGS(
        path.variables, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = distance(path)
        error.backward()
        return error

    for step in steps:
        if time.monotonic() > end:
            return
        stride = min(steps.step, steps.stop - step)
        optimizer.param_groups[0].update(max_iter=stride, max_eval=2 * stride)
        error = optimizer.step(closure)
        if progress is not None:
            progress(step + stride, float(error.detach()))


def _consumers(
    wide: Conditioning, narrow: Conditioning, weight: Tensor, bias: Tensor, gram: Tensor, ridge: float
) -> Compensated:
    """W', b' for the moved features over the whole grid: least squares with old and new features side by side."""
    both = zip(wide.features(), narrow.features(), strict=True)
    joint = Moments.gather((torch.cat([old, new], 1), weights) for (old, weights), (new, _) in both)
    added = narrow.width
    return least_squares(
        joint,
        F.pad(weight.double(), (0, added)),
        bias,
        torch.arange(wide.width, wide.width + added),
        ridge=ridge,
        gram=F.pad(gram, (0, added, 0, added)),
    )
