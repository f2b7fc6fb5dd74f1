"""`analyze embeddings`: how alike and how sparse the conditional vectors of a class-conditional model are.

The vector is c = t + y (time embedding + class embedding), before the activation of adaLN, as in Pham et al.,
"A Hidden Semantic Bottleneck in Conditional Embeddings of Diffusion Transformers", arXiv:2602.21596.
A table and a time MLP are all it needs: no forward pass of the model.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from surgery.analyses.geometry import (
    GAUSSIAN_NPR,
    head_share,
    mean_cosine,
    normalised_participation_ratio,
    off_diagonal,
    pairwise_cosine,
    participation_ratio,
    predicted_cosine,
    rank_correlation,
    tail_share,
)
from surgery.analyses.grid import variance_directions
from surgery.analyses.rounding import rounded
from surgery.diagnostics import SurgeryError

SHOWN_CLASSES = 64
SHOWN_TIMESTEPS = 50
PAPER_THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 1.0, 5.0)
IDENTITY = "all classes share t, so c − mean c equals y − mean y: centred similarity of c is that of y alone"


def analyze_embeddings(
    time: Tensor,
    classes: Tensor,
    *,
    timesteps: Tensor,
    null_row: int | None = None,
    activation: Callable[[Tensor], Tensor] = functional.silu,
    first: int = 0,
    kept: Tensor | None = None,
    consumer_norms: Tensor | None = None,
) -> dict:
    """Similarity, sparsity and dimension of c = t + y as a finding of kind "embeddings", plain JSON.

    time [T, D] is the time MLP's output at timesteps [T]; classes [K, D] (or [K+1, D] with the unconditional class in
    `null_row`, which no statistic counts). `first` indexes the initial sampling step, where similarity and sparsity
    are taken; `kept` holds the coordinates a cut kept; `consumer_norms` [D] the norms of the columns that read
    activation(c). Statistics are over all classes; matrices for display hold at most 64 of them.

    Raises S290 where shapes do not fit, values are not finite, or there are fewer than two classes.
    """
    _guard(time, classes, timesteps, null_row, first)
    time, table = time.detach().double().cpu(), classes.detach().double().cpu()
    y = table if null_row is None else torch.cat([table[:null_row], table[null_row + 1 :]])
    t = time[first]
    c = t + y
    finding = {
        "kind": "embeddings",
        "classes": len(y),
        "width": y.shape[1],
        "timesteps": {"count": len(time), "first": float(timesteps[first])},
        "norms": _norms(t, y),
        "similarity": _similarity(t, y),
        "sweep": _sweep(time, y, timesteps.double().cpu()),
        "participation": _participation({"y": y, "t": t[None], "c": c, "activated": activation(c)}),
        "spectrum": _spectrum(c, activation(c), consumer_norms, kept),
        "head": _head(c, activation(c)),
        "tail": _tail(c),
        "class_variance": _class_variance(y, c),
        "directions": variance_directions(time, y, activation),
    }
    return finding if kept is None else finding | {"cut": _cut(c, activation(c), kept)}


def _guard(time: Tensor, classes: Tensor, timesteps: Tensor, null_row: int | None, first: int) -> None:
    rows = len(classes) - (null_row is not None)
    faults = (
        (time.ndim != 2 or classes.ndim != 2, "both embeddings must be matrices of one row per timestep and per class"),
        (time.shape[-1] != classes.shape[-1], f"time is {time.shape[-1]} wide, classes are {classes.shape[-1]} wide"),
        (len(timesteps) != len(time), f"{len(timesteps)} timesteps name {len(time)} time embeddings"),
        (rows < 2, f"{rows} class is too few to compare"),
        (null_row is not None and not 0 <= null_row < len(classes), f"no row {null_row} in the class table"),
        (not 0 <= first < len(time), f"no timestep {first} among {len(time)}"),
        (not bool(time.isfinite().all() and classes.isfinite().all()), "embeddings hold NaN or infinity"),
    )
    for wrong, message in faults:
        if wrong:
            raise SurgeryError(message, code="S290")


def _norms(t: Tensor, y: Tensor) -> dict:
    own = y.norm(dim=-1)
    return {
        "time": float(t.norm()),
        "class": float(own.mean()),
        "class_range": [float(own.min()), float(own.max())],
        "ratio": float(t.norm() / own.mean()) if own.mean() > 0 else None,
    }


def _similarity(t: Tensor, y: Tensor) -> dict:
    c = t + y
    centred_y, centred_c = y - y.mean(0), c - c.mean(0)
    shown = _evenly(len(y), SHOWN_CLASSES)
    matrices = {"c": pairwise_cosine(c), "y": pairwise_cosine(y), "centred": pairwise_cosine(centred_y)}
    return {
        **{name: _off_diagonal_range(matrix) for name, matrix in matrices.items()},
        "predicted": predicted_cosine(t, y),
        "expected_centred": -1 / (len(y) - 1),
        "centred_gap": float((centred_c - centred_y).abs().max()),
        "identity": IDENTITY,
        "shown": shown.tolist(),
        "matrices": {name: rounded(matrix[shown][:, shown]) for name, matrix in matrices.items()},
    }


def _off_diagonal_range(matrix: Tensor) -> dict:
    pairs = off_diagonal(matrix)
    return {"mean": float(pairs.mean()), "min": float(pairs.min()), "max": float(pairs.max())}


def _sweep(time: Tensor, y: Tensor, timesteps: Tensor) -> dict:
    """Mean cosine of c along the timesteps, beside what ‖t‖/‖y‖ predicts."""
    shown = _evenly(len(time), SHOWN_TIMESTEPS)
    return {
        "timesteps": rounded(timesteps[shown]),
        "cosine": [mean_cosine(t + y) for t in time[shown]],
        "predicted": [predicted_cosine(t, y) for t in time[shown]],
        "alone": mean_cosine(y),
        "time_norm": rounded(time[shown].norm(dim=-1)),
    }


def _participation(groups: dict[str, Tensor]) -> dict:
    rows = {name: _participation_row(vectors) for name, vectors in groups.items()}
    return {"gaussian": GAUSSIAN_NPR, **rows}


def _participation_row(vectors: Tensor) -> dict:
    share = normalised_participation_ratio(vectors)
    return {
        "npr": float(share.mean()),
        "range": [float(share.min()), float(share.max())],
        "pr": float(participation_ratio(vectors).mean()),
        "ratio": float(share.mean()) / GAUSSIAN_NPR,
    }


def _spectrum(c: Tensor, activated: Tensor, consumer_norms: Tensor | None, kept: Tensor | None) -> dict:
    """Mean over classes of |c_i| and |activation(c)_i|, each sorted, largest first, with the coordinate's number."""
    spectra = {"magnitude": c.abs().mean(0), "activation": activated.abs().mean(0)}
    if consumer_norms is not None:
        spectra["effect"] = spectra["activation"] * consumer_norms.detach().double().cpu()
    return {name: _sorted_spectrum(values, kept) for name, values in spectra.items()}


def _sorted_spectrum(values: Tensor, kept: Tensor | None) -> dict:
    order = values.argsort(descending=True, stable=True)
    spectrum = {"values": rounded(values[order]), "coordinates": order.tolist()}
    return spectrum if kept is None else spectrum | {"kept": torch.isin(order, torch.as_tensor(kept).cpu()).tolist()}


def _head(c: Tensor, activated: Tensor) -> dict:
    """The largest 1 % of |c| (at least four): where they are negative, an activation like SiLU has silenced them."""
    mean, active = c.mean(0), activated.abs().mean(0)
    largest = c.abs().mean(0).argsort(descending=True, stable=True)[: max(4, round(0.01 * c.shape[1]))]
    return {
        "coordinates": largest.tolist(),
        "negative": int((mean[largest] < 0).sum()),
        "magnitude_share": float(c.abs().mean(0)[largest].sum() / c.abs().mean(0).sum().clamp(min=1e-300)),
        "activation_share": float(active[largest].sum() / active.sum().clamp(min=1e-300)),
    }


def _tail(c: Tensor) -> dict:
    magnitude = c.abs()
    high = max(float(magnitude.max()), 1e-6)
    low = max(float(magnitude.flatten().sort().values[magnitude.numel() // 500]), high / 1e4)
    thresholds = torch.logspace(math.log10(low), math.log10(high), 81, dtype=torch.float64)
    named = torch.tensor(PAPER_THRESHOLDS, dtype=torch.float64)
    return {
        "thresholds": rounded(thresholds),
        "tail": rounded(tail_share(c, thresholds)),
        "head": rounded(head_share(c, thresholds)),
        "named": rounded(torch.stack([named, tail_share(c, named), head_share(c, named)], -1)),
        "rms": float(c.square().mean().sqrt()),
        "largest": float(magnitude.max()),
    }


def _class_variance(y: Tensor, c: Tensor) -> dict:
    """Variance over classes of each coordinate: y and c have the same, since t is one for all classes."""
    variance = y.var(0, unbiased=False)
    ordered = variance.sort(descending=True).values
    total = ordered.sum()
    cumulative = ordered.cumsum(0) / total if total > 0 else torch.zeros_like(ordered)
    counts = {share: max(1, round(share * len(ordered))) for share in (0.1, 0.25, 0.5)}
    return {
        "mean": float(variance.mean()),
        "cumulative": rounded(cumulative),
        "top": [{"share": s, "coordinates": n, "variance": float(cumulative[n - 1])} for s, n in counts.items()],
        "rank_correlation": rank_correlation(variance, c.mean(0).abs()),
    }


def _cut(c: Tensor, activated: Tensor, kept: Tensor) -> dict:
    """What a cut removed, beside the |c| and the |activation(c)| tail of the same size."""
    width = c.shape[1]
    mask = torch.zeros(width, dtype=torch.bool)
    mask[torch.as_tensor(kept).cpu().long()] = True
    removed = int((~mask).sum())
    magnitude = c.abs().mean(0)
    agreement = {
        name: float((~mask)[values.argsort(stable=True)[:removed]].double().mean()) if removed else 1.0
        for name, values in (("magnitude", magnitude), ("activation", activated.abs().mean(0)))
    }
    return {
        "kept": width - removed,
        "removed": removed,
        "share": removed / width,
        "threshold": float(magnitude.sort().values[removed]) if removed < width else None,
        "agreement": agreement,
    }


def _evenly(count: int, limit: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, limit)).round().long()
