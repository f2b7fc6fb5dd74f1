"""The vectors c(t, y) a network can see, computed from its graph: time branch, class table, features, consumers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.evaluate import evaluate
from surgery.anatomy.graphs import aten, attribute, bias_of, is_op, placeholders, shape, tensor_ancestors, weight_of
from surgery.anatomy.site import Anatomy
from surgery.anatomy.sites.conditioning import Conditioning
from surgery.compensation import Grid
from surgery.diagnostics import RefusalError
from surgery.targets.schedule import Schedule, default_times
from surgery.targets.tied import Tied

CHUNK = 250
TIMESTEPS = 1000
SAME = (aten.to, aten.clone, aten.contiguous, aten.alias, aten.dropout, aten.unsqueeze, aten.squeeze, aten.view)
"""Operations whose output is their input."""


@dataclass(frozen=True, eq=False)
class ConditionalGrid:
    """time [T, D] and table [V, D] in float64; c(t, y) = time[t] + table[y]. `times` [T] as the network is fed. All on
    the CPU, wherever the network is."""

    anatomy: Anatomy
    group: Tied
    times: Tensor
    time: Tensor
    table: Tensor

    @property
    def grid(self) -> Grid:
        return Grid(self.time, self.table)

    def features(self, rows: Tensor) -> Tensor:
        """What the consumers read when c is `rows` [n, D]: the activation, in the rows' dtype."""
        return self.read_by(self.group.unique_consumers[0], rows)

    def read_by(self, consumer: Node, rows: Tensor) -> Tensor:
        vector = next(site.vector for site in self.group.sites if consumer in site.dimension.consumers)
        given = _stretched(self.anatomy, len(rows)) | {vector: _shaped(rows, vector)}
        return evaluate(self.anatomy.graph_module, [consumer.args[0]], given)[0].reshape(len(rows), -1).to(rows.device)

    def consumers(self) -> list[tuple[str, Tensor, Tensor]]:
        """Every modulation layer once: its weight's name, weight [M, D] and bias [M] (zeros where it has none)."""
        found = []
        for node in self.group.unique_consumers:
            weight = attribute(self.anatomy.graph_module, weight_of(node).target)
            bias = bias_of(node)
            values = (
                weight.new_zeros(len(weight)) if bias is None else attribute(self.anatomy.graph_module, bias.target)
            )
            found.append((weight_of(node).target, weight.detach().cpu(), values.detach().cpu()))
        return found

    @torch.no_grad()
    def time_layer(self) -> tuple[Node, Tensor] | None:
        """The linear that is the time branch's last and what it reads [T, H]; None where time[t] is not just its output."""
        site = self.group.sites[0]
        last = site.of_time
        while is_op(last, *SAME):
            last = last.args[0]
        if site.vector is not site.join or not is_op(last, aten.linear):
            return None
        return last, _time_values(self.anatomy, site, last.args[0], self.times).cpu()


@torch.no_grad()
def conditional_grid(anatomy: Anatomy, group: Tied, schedule: Schedule | None) -> ConditionalGrid:
    """Evaluate the time branch at every timestep and read the class table.

    Raises RefusalError (S311) when c depends on more inputs than a timestep and a label, when consumers read
    different functions of c, or when sites that share some of their weights differ in others.
    """
    site = group.sites[0]
    label, timestep = _inputs(site)
    like = anatomy.inputs[timestep.name]
    times = schedule.times.to(like.dtype) if schedule else default_times(like, _time_rows(site))
    time = _time_values(anatomy, site, site.of_time, times)
    rows = torch.arange(site.classes)
    given = _stretched(anatomy, site.classes) | {label: rows.to(anatomy.inputs[label.name].dtype)}
    table = evaluate(anatomy.graph_module, [site.of_class], given)[0].reshape(site.classes, -1)
    _refuse_half_tied(anatomy, group, times)
    time, table = (part.cpu() for part in _settled(anatomy, site, time.double(), table.double()))
    found = ConditionalGrid(anatomy, group, times, time, table)
    _refuse_mixed_features(found)
    return found


def timestep_input(site: Conditioning) -> Node:
    """The placeholder the network is told the timestep by."""
    return _inputs(site)[1]


def _inputs(site: Conditioning) -> tuple[Node, Node]:
    labels = [node for node in tensor_ancestors(site.table.args[1]) if node.op == "placeholder"]
    others = [node for node in tensor_ancestors(site.vector) if node.op == "placeholder" and node not in labels]
    if len(labels) != 1 or len(others) != 1:
        names = ", ".join(sorted(node.name for node in labels + others))
        raise RefusalError(
            f"c depends on {names}: not on one label and one timestep alone",
            code="S311",
            help="prune with by=magnitude scope=per-vector, which needs no grid of timesteps and classes",
        )
    return labels[0], others[0]


def _time_rows(site: Conditioning) -> int:
    """How many timesteps there can be: the rows of the table they are looked up in, or 1000."""
    tables = [node for node in tensor_ancestors(site.of_time) if is_op(node, aten.embedding) and node is not site.table]
    return min([TIMESTEPS, *(shape(weight_of(node))[0] for node in tables if weight_of(node))])


def _settled(anatomy: Anatomy, site: Conditioning, time: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """time and table whose sum is c itself, where constants scale and shift the sum of the two: an affine map."""
    if site.vector is site.join:
        return time, table

    def settle(rows: Tensor) -> Tensor:
        given = _stretched(anatomy, len(rows)) | {site.join: _shaped(rows, site.join)}
        return evaluate(anatomy.graph_module, [site.vector], given)[0].reshape(len(rows), -1)

    return settle(time), settle(table) - settle(torch.zeros_like(table))


def _shaped(rows: Tensor, like: Node) -> Tensor:
    """Rows [n, D] as the graph has them: [n, D] or [n, 1, D]."""
    return rows.reshape(len(rows), *[1] * (len(shape(like)) - 2), rows.shape[-1])


def _time_values(anatomy: Anatomy, site: Conditioning, node: Node, times: Tensor) -> Tensor:
    timestep = _inputs(site)[1]
    inner = anatomy.inputs[timestep.name].shape[1:]
    parts = []
    for part in times.split(CHUNK):
        fed = part.reshape(-1, *[1] * len(inner)).expand(-1, *inner)
        parts.append(evaluate(anatomy.graph_module, [node], _stretched(anatomy, len(part)) | {timestep: fed})[0])
    return torch.cat(parts).reshape(len(times), -1)


def _stretched(anatomy: Anatomy, batch: int) -> dict[Node, Any]:
    """Example inputs at another batch size without copying: the first row, repeated."""
    have = next(leaf.shape[0] for leaf in anatomy.inputs.values() if isinstance(leaf, Tensor) and leaf.dim())
    given = {}
    for node in placeholders(anatomy.graph_module):
        leaf = anatomy.inputs[node.name]
        batched = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == have
        given[node] = leaf[:1].expand(batch, *leaf.shape[1:]) if batched else leaf
    return given


def _refuse_half_tied(anatomy: Anatomy, group: Tied, times: Tensor) -> None:
    first = group.sites[0]
    of_first = _time_values(anatomy, first, first.of_time, times[:2])
    for site in group.sites[1:]:
        same_table = weight_of(site.table).target == weight_of(first.table).target
        if not same_table or not torch.equal(_time_values(anatomy, site, site.of_time, times[:2]), of_first):
            raise RefusalError(
                f"{site.name} shares weights with {first.name}, but adds another class table or timestep",
                code="S311",
                help="prune with by=magnitude scope=per-vector, which needs no grid",
            )


def _refuse_mixed_features(grid: ConditionalGrid) -> None:
    rows = grid.time[:2] + grid.table[:1]
    first = grid.features(rows)
    for consumer in grid.group.unique_consumers[1:]:
        if not torch.equal(grid.read_by(consumer, rows), first):
            raise RefusalError(
                f"modulation layers read different functions of c: {weight_of(consumer).target} is not like the first",
                code="S311",
                help="prune with by=magnitude scope=per-vector, which needs no grid",
            )
