"""The slow truth of probe-and-select: sketch, correlate with every block's atoms, sort."""

import torch
from torch import Tensor


def probe_select(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, shared: bool) -> tuple[Tensor, Tensor]:
    """s = probes x; score[b] = Σₐ (dictionary[:, a, b] · s)²; the numbers of the `keep` best, sorted, and all scores.

    x [T, d], probes [m, d], dictionary [m, atoms, blocks] → blocks int32 [T, keep], scores [T, blocks] in fp32 (fp64 for
    fp64); shared: scores summed over rows, one row comes back. Of equal scores the lower number wins, a NaN loses to all.
    """
    scores = score(x, probes, dictionary, shared)
    return best(scores, keep), scores


def score(x: Tensor, probes: Tensor, dictionary: Tensor, shared: bool) -> Tensor:
    """[T, blocks], or [1, blocks] if shared."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sketch = x.to(wide) @ probes.to(wide).t()
    scores = (sketch @ dictionary.to(wide).flatten(1)).square().unflatten(1, dictionary.shape[1:]).sum(1)
    return scores.sum(0, keepdim=True) if shared else scores


def best(scores: Tensor, keep: int) -> Tensor:
    """Numbers of the `keep` highest of each row, sorted: int32."""
    ranked = torch.where(scores.isnan(), float("-inf"), scores).sort(dim=1, descending=True, stable=True).indices
    return ranked[:, :keep].sort(1).values.to(torch.int32)
