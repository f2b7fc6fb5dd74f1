"""What the analyses of a spec found, as data for the report."""

from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.graphs import attribute, weight_of
from surgery.session.prepare import Prepared
from surgery.session.rewrite import Choices
from surgery.targets.choice import Choice
from surgery.targets.conditional_grid import ConditionalGrid, conditional_grid
from surgery.targets.tied import tied

PER_CLASS = 8


def embeddings_findings(prepared: Prepared, choices: Choices) -> list[dict[str, Any]]:
    """Class and time embeddings of every group of tied conditional vectors; of the first where they are many copies."""
    from surgery.analyses.embeddings import analyze_embeddings

    found = []
    for group in tied(prepared.anatomy.of_kind("conditioning"))[:1]:
        grid = conditional_grid(prepared.anatomy, group, prepared.schedule)
        choice = chosen_for(prepared, choices, group.names)
        finding = analyze_embeddings(
            grid.time,
            grid.table,
            timesteps=grid.times,
            null_row=_null_row(prepared),
            activation=grid.features,
            first=_noisiest(prepared, grid),
            kept=choice.keep if choice else None,
            consumer_norms=_column_norms(grid),
        )
        found.append(finding | {"site": group.names[0]})
    return found


def chosen_for(prepared: Prepared, choices: Choices, names: tuple[str, ...] | None = None) -> Choice | None:
    """What a cut of class embeddings keeps: of the vectors of these names, or of any; None where none was cut."""
    for work, choice in zip(prepared.works, choices, strict=True):
        group = getattr(work, "group", None)
        if group is not None and isinstance(choice, Choice) and names in (None, group.names):
            return choice
    return None


def samples_finding(before: Any, after: Any, classes: int) -> dict[str, Any] | None:
    """A grid of samples from the same noise, before and after, a few per class, as bytes."""
    if before.samples is None or after.samples is None or before.labels is None:
        return None
    rows = [
        int(i) for label in range(min(classes, 10)) for i in (before.labels == label).nonzero().flatten()[:PER_CLASS]
    ]
    low, high = float(before.samples.min()), float(before.samples.max())
    return {
        "kind": "samples",
        "labels": before.labels[rows].tolist(),
        "before": _bytes(before.samples[rows], low, high),
        "after": _bytes(after.samples[rows], low, high),
    }


def _bytes(samples: Tensor, low: float, high: float) -> list:
    shown = samples[:, 0] if samples.shape[1] == 1 else samples[:, :3].permute(0, 2, 3, 1)
    scaled = (shown - low) / max(high - low, 1e-9)
    return scaled.clamp(0, 1).mul(255).round().to(torch.uint8).tolist()


def _null_row(prepared: Prepared) -> int | None:
    return prepared.model.diffusion.null_class if prepared.model.diffusion else None


def _noisiest(prepared: Prepared, grid: ConditionalGrid) -> int:
    if prepared.schedule is None:
        return len(grid.times) - 1
    return int((grid.times == prepared.schedule.sampled[0].to(grid.times.dtype)).nonzero()[0])


def _column_norms(grid: ConditionalGrid) -> Tensor:
    weights = [attribute(grid.anatomy.graph_module, weight_of(node).target) for node in grid.group.unique_consumers]
    return torch.stack([weight.detach().cpu().double().square().sum(0) for weight in weights]).sum(0).sqrt()
