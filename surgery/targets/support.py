"""Choosing the kept coordinates of c, and the weights that make up for the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.graphs import attribute, bias_of, weight_of
from surgery.anatomy.site import Anatomy
from surgery.compensation import (
    Conditioning,
    Moments,
    activation,
    consumer_gram,
    effect,
    greedy,
    least_squares,
    magnitude,
    random,
    ranking,
    refit,
    unchanged,
)
from surgery.diagnostics import RefusalError
from surgery.targets.choice import Candidate, Choice
from surgery.targets.conditional_grid import ConditionalGrid, conditional_grid
from surgery.targets.schedule import Schedule
from surgery.targets.tied import Tied

CRITERIA = ("greedy", "effect", "activation", "magnitude")
ITERATIONS = 600
"""Of a refit, at most; a wide grid gets fewer, at least a tenth."""
PAIRS = 8192
"""Of a grid, that a refit looks at in one iteration."""
AFFORDABLE = 4e8
"""Pairs × kept × coordinates above which `compensate=auto` does not refit: an iteration takes about a second there."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Features of the whole grid in moments, and all modulation layers stacked: weight [M, D], bias [M]."""

    grid: ConditionalGrid
    names: tuple[str, ...]
    rows: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    gram: Tensor
    moments: Moments

    @classmethod
    def of(cls, grid: ConditionalGrid) -> "Problem":
        names, weights, biases = zip(*grid.consumers(), strict=True)
        stacked = torch.cat(weights)
        moments = Moments.gather((grid.features(rows), weight) for rows, weight in grid.grid.rows())
        rows = tuple(len(weight) for weight in weights)
        return cls(grid, names, rows, stacked, torch.cat(biases), consumer_gram(stacked), moments)

    def linears(self, weight: Tensor, bias: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Stacked consumers apart again, by the name of their weight."""
        return dict(zip(self.names, zip(weight.split(self.rows), bias.split(self.rows), strict=True), strict=True))


def choose_support(
    anatomy: Anatomy,
    group: Tied,
    schedule: Schedule | None,
    options: Any,
    count: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Choice:
    """Keep `count` coordinates by the criterion asked for, or by the one with the least error on this model.

    The error of a choice is the share of the modulation layers' variance over the timestep × class grid that it
    leaves unexplained, in closed form and float64. `compensate=auto` refits where c is made of a table and a linear
    of its own, and folds in closed form elsewhere.
    """
    problem = Problem.of(conditional_grid(anatomy, group, schedule))
    folded = _folded(problem, _supports(problem, options, count), plain=options.compensate == "none")
    if not _refits(problem, folded.keep, options):
        return folded
    return _refitted(problem, folded, options, progress) or folded


def _folded(problem: Problem, supports: dict[str, Tensor], *, plain: bool) -> Choice:
    """The support with the least error, what goes folded into what stays; with `plain`, only what c = 0 leaves."""
    compensate, name = (unchanged, "none") if plain else (least_squares, "least-squares")
    measured = {
        by: compensate(problem.moments, problem.weight, problem.bias, keep, gram=problem.gram)
        for by, keep in supports.items()
    }
    best = min(measured, key=lambda by: measured[by].error)
    candidates = tuple(Candidate(by, name, made.error) for by, made in measured.items())
    keep, made = supports[best], measured[best]
    linears = _at_zero(problem, keep) if plain else problem.linears(made.weight, made.bias)
    return Choice(keep, Candidate(best, name, made.error), candidates, linears)


def _at_zero(problem: Problem, keep: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Consumers whose bias takes what dropped coordinates still say at c = 0; nothing to change where that is 0."""
    dropped = torch.ones(problem.moments.width, dtype=torch.bool).index_fill(0, keep, False)
    said = problem.grid.features(torch.zeros(1, len(dropped), dtype=torch.float64))[0][dropped]
    if not said.any():
        return {}
    weight = problem.weight.double()
    return problem.linears(weight[:, keep], problem.bias.double() + weight[:, dropped] @ said)


def _refits(problem: Problem, keep: Tensor, options: Any) -> bool:
    """Whether c itself is to move: where that was asked for, or by itself where it takes seconds."""
    if options.compensate == "auto":
        return _cost(problem, keep) <= AFFORDABLE
    return options.compensate in ("refit", "match")


def _refitted(
    problem: Problem, folded: Choice, options: Any, progress: Callable[[str, int, int], None] | None
) -> Choice | None:
    """The kept coordinates moved too, where the time branch ends in a linear and the class in a table; else None.

    Raises RefusalError (S315) where `compensate=refit` asked for it and c is made otherwise.
    """
    parts = _parts(problem.grid, folded.keep)
    if parts is None:
        if options.compensate == "auto":
            return None
        raise RefusalError(
            "c is not the sum of a table and a linear layer alone, so it cannot be refitted",
            code="S315",
            span=options.clause.span if options.clause else None,
            help="use compensate=least-squares",
        )
    conditioning, names = parts
    iterations = _iterations(problem, folded.keep)
    found = refit(
        conditioning,
        problem.weight,
        problem.bias,
        folded.keep,
        iterations=iterations,
        limit=PAIRS,
        seed=options.seed,
        progress=progress and (lambda done, error: progress(f"refitting c, error {error:.1e}", done, iterations)),
    )
    if not found.error < found.before:
        return None
    moved = Candidate(folded.chosen.by, "refit", found.error)
    linears = problem.linears(found.weight, found.bias)
    return Choice(folded.keep, moved, (*folded.candidates, moved), linears, _made(found.conditioning, names))


def _made(narrow: Conditioning, names: dict[str, str]) -> dict[str, tuple[Tensor, int]]:
    """The narrower time layer and table by name, with the axis that was cut."""
    made = {names["weight"]: (narrow.time_weight, 0), names["table"]: (narrow.table, 1)}
    return made if narrow.time_bias is None else made | {names["bias"]: (narrow.time_bias, 0)}


def _iterations(problem: Problem, keep: Tensor) -> int:
    """All of them on a small grid, a tenth on a wide one."""
    return max(ITERATIONS // 10, min(ITERATIONS, int(ITERATIONS * AFFORDABLE / 10 / _cost(problem, keep))))


def _cost(problem: Problem, keep: Tensor) -> float:
    """What an iteration of a refit takes, in pairs × kept × coordinates."""
    return min(len(problem.grid.grid), PAIRS) * max(len(keep), 1) * problem.moments.width


def _parts(grid: ConditionalGrid, keep: Tensor) -> tuple[Conditioning, dict[str, str]] | None:
    """The time branch's last linear and the class table, when c is the sum of just these."""
    layer, site = grid.time_layer(), grid.group.sites[0]
    table = weight_of(site.table)
    if layer is None or table is None:
        return None
    linear, hidden = layer
    graph_module = grid.anatomy.graph_module
    bias = bias_of(linear)
    conditioning = Conditioning(
        hidden=hidden,
        time_weight=attribute(graph_module, weight_of(linear).target).detach().cpu(),
        time_bias=None if bias is None else attribute(graph_module, bias.target).detach().cpu(),
        table=attribute(graph_module, table.target).detach().cpu(),
        activation=_features(grid, keep),
    )
    sums = torch.allclose(conditioning.time, grid.time, rtol=1e-3, atol=1e-3 * float(grid.time.abs().max()))
    if not sums or conditioning.table.shape != grid.table.shape:
        return None
    if not torch.allclose(conditioning.table.double(), grid.table):
        return None
    names = {"weight": weight_of(linear).target, "table": table.target}
    return conditioning, names if bias is None else names | {"bias": bias.target}


def _features(grid: ConditionalGrid, keep: Tensor) -> Callable[[Tensor], Tensor]:
    """What consumers read of c [N, D], and of the kept coordinates alone [N, n]: the graph knows only the former."""

    def read(rows: Tensor) -> Tensor:
        if rows.shape[-1] == grid.group.width:
            return grid.features(rows)
        wide = rows.new_zeros(len(rows), grid.group.width).index_copy(1, keep, rows)
        return grid.features(wide)[:, keep]

    return read


def _supports(problem: Problem, options: Any, count: int) -> dict[str, Tensor]:
    """The kept coordinates [count], ascending, by each criterion that is in question."""
    width = problem.moments.width
    if options.side == "random":
        return {"random": _kept(ranking(random(width, options.seed)), count)}
    wanted = CRITERIA if options.by == "auto" else (options.by,)
    orders = {by: _order(by, problem) for by in wanted}
    if options.side == "head":
        orders = {by: order.flip(0) for by, order in orders.items()}
    return {by: _kept(order, count) for by, order in orders.items()}


def _order(by: str, problem: Problem) -> Tensor:
    moments, gram = problem.moments, problem.gram
    if by == "greedy":
        return greedy(moments.covariance, gram).order
    if by == "effect":
        return ranking(effect(moments, gram))
    if by == "activation":
        return ranking(activation(moments))
    return ranking(magnitude(problem.grid.grid.rows()))


def _kept(order: Tensor, count: int) -> Tensor:
    return order[:count].sort().values
