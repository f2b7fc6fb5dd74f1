"""Choosing the units that stay, by what calibration data says, and the weights that make up for the others."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import attribute
from surgery.anatomy.units import Coupling
from surgery.compensation.eliminate import eliminate, saliency
from surgery.compensation.reconstruct import Reader, Reconstructed, reconstruct, unexplained, without
from surgery.targets.choice import Candidate, Choice
from surgery.targets.unit_scores import shuffled, weight_scores
from surgery.targets.watched import Layer, Seen


@dataclass(frozen=True, eq=False)
class Problem:
    """A site whose layer was watched: `scores` by criterion for those that are neither weights' nor `seen`'s own."""

    graph_module: GraphModule
    coupling: Coupling
    layer: Layer
    reader: Reader
    seen: Seen
    scores: dict[str, Tensor]

    def ranking(self, by: str, options: Any, remove: int, *, refitted: bool) -> Tensor:
        """Places of the units, those that go first in front; at least the first `remove` of them. Ties go by place."""
        if by == "random":
            return shuffled(len(self.layer.units), options.seed)
        spread, groups = self.reader.spread(self.seen.fit), self.layer.units
        if by == "greedy" and options.side == "tail":
            return eliminate(spread, self.reader.weight, groups, remove, pull=self.reader.pull(self.seen.fit))
        if by == "greedy":
            scores = saliency(spread, self.reader.weight, groups)
        else:
            scores = self._scores(by, refitted=refitted)
        return torch.argsort(scores, descending=options.side == "head", stable=True)

    def _scores(self, by: str, *, refitted: bool) -> Tensor:
        """[U] float64. effect: the root mean square of what a unit adds to the layer's output, about the mean where the
        bias takes the mean over. activation: Σ_ij |W_ij| · rms(x_j), Wanda's score (arXiv:2306.11695) summed."""
        seen, weight, units = self.seen.fit, self.reader.weight, self.layer.units
        if by == "effect":
            spread = self.reader.spread(seen) if refitted else seen.second
            blocks = spread[units[:, :, None], units[:, None, :]]
            columns = weight[:, units].permute(1, 0, 2)
            return ((columns @ blocks) * columns).sum((1, 2)).clamp(min=0).sqrt()
        if by == "activation":
            sizes = seen.second.diagonal().clamp(min=0).sqrt() * weight.abs().sum(0)
            return sizes[units].sum(1)
        return self.scores[by] if by in self.scores else weight_scores(self.graph_module, self.coupling, by)

    def keep(self, ranking: Tensor, remove: int) -> Tensor:
        return ranking[remove:].sort().values if len(ranking) == len(self.layer.units) else _others(ranking, self.layer)


def choose_by_data(problem: Problem, options: Any, criteria: tuple[str, ...], remove: int) -> Choice:
    """The criterion with the least held-out error; its weights fitted on all rows. Where least squares does not lower
    that error, the layer is left as it is and a note says so."""
    refitted = options.compensate != "none"
    made: dict[str, tuple[Tensor, Reconstructed, float]] = {}
    for by in criteria:
        ranking = problem.ranking(by, options, remove, refitted=refitted)
        keep = problem.keep(ranking, remove)
        made[by] = (keep, *_fitted(problem, keep, refitted=refitted))
    best = min(made, key=lambda by: made[by][2])
    keep, _, error = made[best]
    word = "least-squares" if refitted else "none"
    candidates = [Candidate(by, word, each[2]) for by, each in made.items()]
    features = problem.layer.features(keep, problem.reader.width)
    if not refitted:
        return Choice(keep, Candidate(best, word, error), tuple(candidates))
    plain = Candidate(best, "none", _fitted(problem, keep, refitted=False)[1])
    candidates.append(plain)
    if not error < plain.error:
        lost = f"{error:.2g} of what the layer says on rows held out, the plain cut {plain.error:.2g}"
        note = f"{problem.layer.weight} is not refitted: that would lose {lost}"
        return Choice(keep, plain, tuple(candidates), notes=(note,))
    final = reconstruct(problem.reader, problem.seen.all, features)
    chosen = Candidate(best, word, error)
    return Choice(keep, chosen, tuple(candidates), tensors=_tensors(problem, final, features))


def _fitted(problem: Problem, keep: Tensor, *, refitted: bool) -> tuple[Reconstructed, float]:
    features = problem.layer.features(keep, problem.reader.width)
    reader, seen = problem.reader, problem.seen
    made = reconstruct(reader, seen.fit, features) if refitted else without(reader, features)
    return made, unexplained(reader, made, seen.held, features)


def _tensors(problem: Problem, made: Reconstructed, features: Tensor) -> dict[str, tuple[Tensor, int | None]]:
    layer = problem.layer
    like = attribute(problem.graph_module, layer.weight)
    found: dict[str, tuple[Tensor, int | None]] = {layer.weight: (layer.stored(made.weight).to(like.dtype), layer.axis)}
    return found if made.bias is None else found | {layer.bias: (made.bias.to(like.dtype), None)}


def _others(gone: Tensor, layer: Layer) -> Tensor:
    return torch.ones(len(layer.units), dtype=torch.bool).index_fill(0, gone, False).nonzero()[:, 0]
