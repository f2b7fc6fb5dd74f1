"""What gates keep, counted on data: edges, attention mass and maps per head, and where an induction head looks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import adaptive_avg_pool2d

from surgery.anatomy.graphs import placeholders
from surgery.passes.gate_edges import MARK
from surgery.passes.sample_gates import HIDDEN
from surgery.targets.calibration import Calibration

MAP = 64
ROWS = 64
"""Rows of calibration data that are counted on; more take time and change little."""
MOST = 1 << 20
"""Edges of a head that a threshold is found among; of more, those of some queries alone."""


@dataclass(eq=False)
class Tally:
    """Of one site's heads [H], over all rows so far: edges kept and possible, mass kept over queries, maps' sums [H, S, S]."""

    kept: Tensor
    possible: Tensor
    mass: Tensor
    queries: int
    dense: Tensor
    frequency: Tensor
    rows: int

    def share(self) -> Tensor:
        """Of the edges that can exist, those kept, per head."""
        return self.kept / self.possible.clamp_min(1)

    def document(self) -> dict[str, Any]:
        """As a finding holds it; maps are scaled to each head's largest value."""
        share = self.share()
        return {
            "heads": len(share),
            "kept": share.tolist(),
            "mass": (self.mass / max(1, self.queries)).tolist(),
            "dead": (self.kept == 0).nonzero()[:, 0].tolist(),
            "map": _map(self.dense / self.rows, self.frequency / self.rows),
        }


def tally(graph_module: GraphModule, calibration: Calibration) -> dict[str, Tally]:
    """By gate path; the graph is one whose gates are all written out (see GateEdges)."""
    found: dict[str, Tally] = {}

    def count(path: str, seen: Seen) -> None:
        one = _count(seen.kept & seen.possible, seen.weights, seen.possible)
        found[path] = _added(found[path], one) if path in found else one

    watch(graph_module, few(calibration), count)
    return found


class Seen(NamedTuple):
    """Of one gate in one batch, [B, H, Sq, Sk] each; `weights` are the attention's, `possible` edges can exist."""

    kept: Tensor
    weights: Tensor
    possible: Tensor
    logits: Tensor


def watch(graph_module: GraphModule, inputs: Iterable[Mapping[str, Any]], visit: Callable[[str, Seen], None]) -> None:
    """Run a graph whose gates are written out on batches, and visit each gate by its path when its time has come: no
    more than one is held at a time."""
    for given in inputs:
        _Watch(graph_module, visit).run(*_values(graph_module, given), enable_io_processing=False)


def few(calibration: Calibration) -> Iterator[Mapping[str, Any]]:
    """Batches of the first rows."""
    left = ROWS
    for given in calibration:
        if left <= 0:
            return
        left -= next(len(value) for value in given.values() if isinstance(value, Tensor) and value.dim())
        yield given


def induction(graph_module: GraphModule, calibration: Calibration, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """(dense, sparse) per head and path: mean attention from the second half of a repeated random sequence to the token
    behind its first occurrence. Empty where the model reads more than tokens."""
    tokens = calibration.inputs.get("input_ids")
    others = {name for name in calibration.inputs if name != "input_ids" and not name.endswith("mask")}
    if calibration.task != "causal-lm" or tokens is None or others or tokens.shape[1] < 6:
        return {}
    half = tokens.shape[1] // 2
    known = tokens.unique()
    drawn = torch.randint(len(known), (16, half), generator=torch.Generator().manual_seed(seed))
    repeated = known[drawn].repeat(1, 2)
    given = {name: torch.ones_like(repeated) for name in calibration.inputs} | {"input_ids": repeated}
    named = {name: given.get(name, option) for name, option in calibration.options.items()} | given
    queries = torch.arange(half, 2 * half - 1)
    found = {}

    def look(path: str, seen: Seen) -> None:
        if seen.weights.shape[-2] == seen.weights.shape[-1] == 2 * half:
            both = seen.weights, seen.weights * seen.kept
            dense, sparse = (each[:, :, queries, queries - half + 1] for each in both)
            found[path] = dense.mean((0, 2)), sparse.mean((0, 2))

    watch(graph_module, [named], look)
    return found


def thresholds(graph_module: GraphModule, calibration: Calibration, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per path and head the attention weight that this share of the possible edges is above."""
    found = _of_some(graph_module, calibration)
    return {path: _quantiles(weights, shares[path]) for path, (weights, _) in found.items()}


def threshold(graph_module: GraphModule, calibration: Calibration, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for all: one attention weight that as many edges of all heads together are above. A head that attends to
    few keys keeps few, and one that spreads its attention thinly keeps none."""
    found = {path: weights for path, (weights, _) in _of_some(graph_module, calibration).items()}
    keep = sum(round(float((shares[path] * (weights >= 0).sum(1)).sum())) for path, weights in found.items())
    least, most = 0, int(torch.ones(()).view(torch.int32))
    while least < most:  # the bits of floats of one sign are in the floats' order
        middle = (least + most) // 2
        above = sum(int((weights > _float(middle)).sum()) for weights in found.values())
        least, most = (middle + 1, most) if above > keep else (least, middle)
    return {path: torch.full((len(weights),), _float(most)) for path, weights in found.items()}


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def biases(graph_module: GraphModule, calibration: Calibration, mass: float) -> dict[str, Tensor]:
    """Per path and head [H] the bias with which edges that hold this share of its attention have logit + bias >= 0."""
    found = _of_some(graph_module, calibration)
    return {path: torch.stack([_bias(*head, mass) for head in zip(*both, strict=True)]) for path, both in found.items()}


def _of_some(graph_module: GraphModule, calibration: Calibration) -> dict[str, tuple[Tensor, Tensor]]:
    """Attention weights, -1 where there is no edge, and logits of the edges of some queries, [H, n] both, by path."""
    taken: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def take(path: str, seen: Seen) -> None:
        every = -(-min(ROWS, calibration.rows) * seen.weights.shape[2] * seen.weights.shape[3] // MOST)
        part = Seen(*(each.expand_as(seen.weights)[:, :, ::every] for each in seen))
        both = torch.where(part.possible, part.weights, -1.0), part.logits.float()
        taken.setdefault(path, []).append(tuple(each.transpose(0, 1).flatten(1) for each in both))

    watch(graph_module, few(calibration), take)
    return {path: tuple(torch.cat(parts, 1) for parts in zip(*pairs, strict=True)) for path, pairs in taken.items()}


def _bias(weights: Tensor, logits: Tensor, mass: float) -> Tensor:
    """Of one head's edges [n]; 0 for a head that has none."""
    there = weights >= 0
    order = logits[there].argsort(descending=True)
    held = weights[there][order].cumsum(0, dtype=torch.float64)
    if not len(held):
        return logits.new_zeros(())
    place = min(int((held < mass * held[-1]).sum()), len(held) - 1)
    return -logits[there][order[place]]


def _quantiles(weights: Tensor, shares: Tensor) -> Tensor:
    """Of weights [H, n], -1 where there is no edge, the largest that is left out; 1 where none is kept."""
    found = torch.ones(len(weights))
    for head, share in enumerate(shares.tolist()):
        there = weights[head][weights[head] >= 0]
        keep = round(share * len(there))
        if keep:
            ordered = there.sort(descending=True).values
            found[head] = ordered[keep] if keep < len(ordered) else -1.0
    return found


class _Watch(Interpreter):
    def __init__(self, graph_module: GraphModule, visit: Callable[[str, Seen], None]) -> None:
        super().__init__(graph_module)
        self.visit = visit
        gated = [node for node in graph_module.graph.nodes if MARK in node.meta]
        self.last = {node.args[1].args[0]: node for node in gated}
        self.held: dict[Node, Tensor] = {}

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        if MARK in n.meta:
            kept, softmax, _ = n.args
            weights = self.env[softmax].float()
            source = softmax.args[0]
            logits = self.held.pop(source) if self.last[source] is n else self.held[source]
            four = self.env[kept].expand_as(weights), weights, logits > HIDDEN, logits
            self.visit(n.meta[MARK], Seen(*map(_heads, four)))
        value = super().run_node(n)
        if n in self.last:
            self.held[n] = value
        return value


def _heads(tensor: Tensor) -> Tensor:
    """[B, .., Sq, Sk] with all axes of heads in one."""
    return tensor[:, None] if tensor.dim() == 3 else tensor.flatten(1, -3)


def _values(graph_module: GraphModule, given: Mapping[str, Any]) -> list[Any]:
    placed = Calibration(given).placed(graph_module, given)
    return [placed[node] for node in placeholders(graph_module)]


def _count(kept: Tensor, weights: Tensor, possible: Tensor) -> Tally:
    """Of one batch [B, H, Sq, Sk]."""
    kept, possible = (each.expand_as(weights) for each in (kept, possible))
    queries = possible.any(-1).any(1).sum()
    return Tally(
        kept.sum((0, 2, 3)).double(),
        possible.sum((0, 2, 3)).double(),
        (weights * kept).sum((0, 2, 3), dtype=torch.float64),
        int(queries),
        weights.sum(0, dtype=torch.float64),
        kept.sum(0, dtype=torch.float64),
        len(weights),
    )


def _added(one: Tally, other: Tally) -> Tally:
    size = [max(pair) for pair in zip(one.dense.shape, other.dense.shape, strict=True)]
    return Tally(
        one.kept + other.kept,
        one.possible + other.possible,
        one.mass + other.mass,
        one.queries + other.queries,
        _padded(one.dense, size) + _padded(other.dense, size),
        _padded(one.frequency, size) + _padded(other.frequency, size),
        one.rows + other.rows,
    )


def _padded(tensor: Tensor, size: list[int]) -> Tensor:
    room = tensor.new_zeros(size)
    room[:, : tensor.shape[1], : tensor.shape[2]] = tensor
    return room


def _map(dense: Tensor, kept: Tensor) -> dict[str, Any]:
    size = min(MAP, max(dense.shape[-2:]))
    return {"size": size, "dense": _bytes(dense, size), "kept": _bytes(kept, size)}


def _bytes(maps: Tensor, size: int) -> list:
    pooled = adaptive_avg_pool2d(maps[None], size)[0]
    scaled = pooled / pooled.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return scaled.mul(255).round().to(torch.uint8).tolist()
