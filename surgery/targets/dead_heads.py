"""Heads that keep no edge: out of the model, with all that makes them, as far as whole units of heads go alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.site import Site
from surgery.anatomy.sites.attention import find_attention
from surgery.anatomy.units import Coupling, trace_all
from surgery.anatomy.units.edits import edits, gone, kept
from surgery.anatomy.units.union import once
from surgery.passes.cut_units import CutUnits

CLOSED = -1e30
"""The bias of a head that keeps no edge whatever its scores are."""


@dataclass(frozen=True, eq=False)
class Removal:
    """`cuts` to be made before gates are put in; `heads` that stay [n] and heads that go, by path; `notes` on the rest."""

    cuts: tuple[CutUnits, ...] = ()
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    gone: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def removal(
    graph_module: GraphModule, dead: Mapping[str, tuple[Sequence[str], Sequence[int]]], clause: str, place: str
) -> Removal:
    """`dead` maps a path to the names of its calls and its dead heads. At least one unit of a site stays."""
    there = {site.nodes[0].name: site for site in find_attention(graph_module)}
    wanted = {path: (there.get(calls[0]), heads) for path, (calls, heads) in dead.items() if heads}
    sites = {path: site for path, (site, _) in wanted.items() if site is not None and len(dead[path][0]) == 1}
    couplings = trace_all(graph_module, [_makers(site) for site in sites.values()])
    cuts, stay, leave, notes = [], {}, {}, []
    for (path, site), coupling in zip(sites.items(), couplings, strict=True):
        found = _units(coupling, site, wanted[path][1])
        if isinstance(found, str):
            notes.append(f"dead heads of {path} stay: {found}")
            continue
        units, heads = found
        changed, obstacles = edits(coupling, units)
        if obstacles or coupling.obstacles:
            notes.append(f"dead heads of {path} stay: {[*coupling.obstacles, *obstacles][0].reason}")
            continue
        weights = {place_: _indices(labels, units) for place_, labels in coupling.weights.items()}
        gathers = {(g.user.name, g.operand.name, g.axis): _indices(g.labels, units) for g in coupling.gathers}
        cuts.append(CutUnits(clause, place, weights, changed, gathers, name="remove-dead-heads"))
        stay[path], leave[path] = (~heads).nonzero()[:, 0], heads.nonzero()[:, 0]
    return Removal(tuple(cuts), stay, leave, tuple(notes))


def _units(coupling: Coupling, site: Any, dead: Sequence[int]) -> tuple[Tensor, Tensor] | str:
    """(units that go, which heads go with them [H] bool), or why none does."""
    held = coupling.labels.get(site.nodes[0])
    if not isinstance(held, Tensor) or held.dim() != 4:
        return "its heads cannot be followed through the graph"
    of_head = once(held)[0, :, 0, 0]
    if len(of_head) != site.heads:
        return "its heads cannot be told apart"
    is_dead = torch.zeros(site.heads, dtype=torch.bool).index_fill(0, torch.tensor(list(dead)), True)
    labels = of_head.unique().tolist()
    units = [label for label in labels if bool(is_dead[of_head == label].all())]
    units = units[1:] if len(units) == len(labels) else units
    if not units:
        return "they share keys and values with heads that live" if len(labels) > 1 else "one unit has to stay"
    removed = torch.tensor(units)
    return removed, gone(of_head, removed)


def _indices(labels: Tensor, removed: Tensor) -> Tensor:
    return kept(labels, removed).nonzero()[:, 0]


def _makers(site: Site) -> list[Any]:
    return [node for node in site.linears if node < site.nodes[0]]
