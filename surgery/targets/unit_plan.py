"""Which units a clause takes from each site, and what cannot be cut: from the graph alone."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch.fx import Node

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.graphs import where
from surgery.anatomy.site import Anatomy, Site
from surgery.anatomy.units import Coupling, trace_all
from surgery.anatomy.units.edits import edits
from surgery.anatomy.units.union import once
from surgery.diagnostics import RefusalError
from surgery.targets.clause import SEARCHED, refuse_options
from surgery.targets.units import EVEN, Units

UNITS = {"mlp": "channels", "attention": "heads"}
CRITERIA = ("auto", "magnitude", "effect", "activation", "taylor", "greedy", "random")
COMPENSATIONS = ("auto", "none", "least-squares")


def plan_units(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list[Units]:
    """A cut per site. Raises RefusalError: S317 where a site cannot be cut, S313 where nothing would be left, S318 for
    an option that this target has not."""
    span = operation.clause.span if operation.clause else None
    _refuse_options(operation)
    works, (sites, alone) = [], _several(sites, span)
    for site, coupling in zip(sites, trace_all(anatomy.graph_module, map(makers, sites)), strict=True):
        coupling = _own(site, coupling)
        if any(coupling.weights.keys() == work.coupling.weights.keys() != set() for work in works):
            continue  # attentions of one layer that share all that makes their heads are cut as one
        remove, notes = _count(operation, site, coupling, span)
        if not coupling.repeated:  # what is a copy of a site that was not refused is not either
            removed = torch.tensor(coupling.units[: max(1, remove)], dtype=torch.int64)
            _refuse(site, [*coupling.obstacles, *edits(coupling, removed)[1]], span)
        works.append(Units(operation, site, coupling, remove, (*notes, *alone) if not works else notes, works))
    return works


def _several(sites: tuple[Site, ...], span: Any) -> tuple[tuple[Site, ...], list[str]]:
    """The sites without those that have but one head, as first stages of vision models do, and a note of these."""
    alone = [site for site in sites if site.kind == "attention" and site.heads == 1]
    if len(alone) < len(sites):
        notes = [f"one head, which stays: {', '.join(f'`{site.name}`' for site in alone)}"] if alone else []
        return tuple(site for site in sites if site not in alone), notes
    raise RefusalError(
        f"`{alone[0].name}` has one head, which cannot go",
        code="S317",
        span=span,
        help="leave this site out with `except`, or prune another part of the model",
    )


def _own(site: Site, coupling: Coupling) -> Coupling:
    """The coupling with the site's own units alone: a layer may make both channels and heads."""
    held = coupling.labels.get(site.channels if site.kind == "mlp" else site.nodes[0])
    if not isinstance(held, torch.Tensor):
        return coupling
    own = set(once(held).unique().tolist())
    return replace(coupling, units=tuple(unit for unit in coupling.units if unit in own))


def makers(site: Site) -> list[Node]:
    """The layers that make what is cut: of an attention those of q, k and v, not the one that joins the heads."""
    return list(site.up) if site.kind == "mlp" else [node for node in site.projections if node < site.nodes[0]]


def _without_layers(site: Site) -> list[Obstacle]:
    """Why a site that has no layers to begin with cannot be cut."""
    return [] if makers(site) else [Obstacle(site.nodes[0], "what it reads is not made by layers alone")]


def _refuse_options(operation: Any) -> None:
    given = {
        "by": operation.by not in CRITERIA,
        "scope": operation.scope != "shared",
        "when": operation.when != "every",
        "compensate": operation.compensate not in COMPENSATIONS,
    }
    help = "rank heads and channels `by effect`, `activation`, `taylor`, `greedy` or `magnitude`; leave the rest out"
    refuse_options(operation, given, "heads and channels", help)


def _refuse(site: Site, found: Sequence[Obstacle], span: Any) -> None:
    """Raise where something forbids the cut: what reads the units otherwise, or a size that cannot follow."""
    if not found:
        return
    raise RefusalError(
        f"cannot cut {UNITS[site.kind]} of `{site.name}`: {where(found[0].node)}: {found[0].reason}",
        code="S317",
        span=span,
        notes=[f"{where(each.node)}: {each.reason}" for each in found[1:4]],
        help="leave this site out with `except`, or prune another part of the model",
    )


def _count(operation: Any, site: Site, coupling: Coupling, span: Any) -> tuple[int, tuple[str, ...]]:
    """Units to remove: the share of what a person counts in, in whole units; what is kept up to the multiple."""
    units, what = len(coupling.units), UNITS[site.kind]
    total = site.heads if site.kind == "attention" else units
    if units < 2:
        _refuse(site, coupling.obstacles or _without_layers(site), span)
        mixing = coupling.mixed[0] if coupling.mixed else None
        raise RefusalError(
            f"the {what} of `{site.name}` can only go all together",
            code="S317",
            span=span,
            notes=[f"{where(mixing)} mixes them"] if mixing is not None else (),
            help="leave this site out with `except`",
        )
    asked = operation.share.of(total)
    remove = int(Fraction(asked * units, total))
    keep = min(ceil((units - remove) / operation.multiple) * operation.multiple, units)
    if keep < 1 or asked >= total:
        raise RefusalError(
            f"{operation.share} of {total} {what} leaves none",
            code="S313",
            span=span,
            help=f"remove at most {total - total // units} of them",
        )
    notes = [SEARCHED] if operation.share.auto else []
    if operation.budget == "global":
        notes.append(EVEN)
    if units != total and site.kv_heads > 1:
        why = "share keys and values" if site.kv_heads < total else "are stored together"
        notes.append(f"{total} heads go in {units} groups that {why}: whole groups are removed")
    if (units - keep) * total != asked * units:
        notes.append(f"{asked} of {total} {what} asked for, {(units - keep) * total // units} removed")
    return units - keep, tuple(notes)
