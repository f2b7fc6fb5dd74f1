"""Choosing the kept coordinates of c, and the weights that make up for the others."""

from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.site import Anatomy
from surgery.compensation import (
    Moments,
    activation,
    consumer_gram,
    effect,
    greedy,
    least_squares,
    magnitude,
    random,
    ranking,
    unchanged,
)
from surgery.targets.choice import Candidate, Choice
from surgery.targets.conditional_grid import ConditionalGrid, conditional_grid
from surgery.targets.schedule import Schedule
from surgery.targets.tied import Tied

CRITERIA = ("greedy", "effect", "activation", "magnitude")


def choose_support(
    anatomy: Anatomy, group: Tied, schedule: Schedule | None, options: Any, count: int, progress: Any = None
) -> Choice:
    """Keep `count` coordinates by the criterion asked for, or by the one with the least error on this model.

    The error of a choice is the share of the modulation layers' variance over the timestep × class grid that it
    leaves unexplained, in closed form and float64.
    """
    grid = conditional_grid(anatomy, group, schedule)
    names, weights, biases = zip(*grid.consumers(), strict=True)
    stacked, bias = torch.cat(weights), torch.cat(biases)
    gram = consumer_gram(stacked)
    moments = Moments.gather((grid.features(rows), weight) for rows, weight in grid.grid.rows())
    compensate = "least-squares" if options.compensate == "auto" else options.compensate
    measured = {}
    for by, keep in _supports(grid, moments, gram, options, count).items():
        refit = unchanged if compensate == "none" else least_squares
        measured[by] = keep, refit(moments, stacked, bias, keep, gram=gram)
    best = min(measured, key=lambda by: measured[by][1].error)
    keep, result = measured[best]
    candidates = tuple(Candidate(by, compensate, made.error) for by, (_, made) in measured.items())
    chosen = next(candidate for candidate in candidates if candidate.by == best)
    if compensate == "none":
        return Choice(keep, chosen, candidates)
    rows = [len(weight) for weight in weights]
    pieces = zip(result.weight.split(rows), result.bias.split(rows), strict=True)
    return Choice(keep, chosen, candidates, linears=dict(zip(names, pieces, strict=True)))


def _supports(grid: ConditionalGrid, moments: Moments, gram: Tensor, options: Any, count: int) -> dict[str, Tensor]:
    """The kept coordinates [count], ascending, by each criterion that is in question."""
    width = moments.width
    if options.side == "random":
        return {"random": _kept(ranking(random(width, options.seed)), count)}
    wanted = CRITERIA if options.by == "auto" else (options.by,)
    orders = {by: _order(by, grid, moments, gram) for by in wanted}
    if options.side == "head":
        orders = {by: order.flip(0) for by, order in orders.items()}
    return {by: _kept(order, count) for by, order in orders.items()}


def _order(by: str, grid: ConditionalGrid, moments: Moments, gram: Tensor) -> Tensor:
    if by == "greedy":
        return greedy(moments.covariance, gram).order
    if by == "effect":
        return ranking(effect(moments, gram))
    if by == "activation":
        return ranking(activation(moments))
    return ranking(magnitude(grid.grid.rows()))


def _kept(order: Tensor, count: int) -> Tensor:
    return order[:count].sort().values
