"""`surgery::seen_keys`: what a mask of attention says beyond causality: which keys are padding, or more than that."""

import torch
from surgery.kernels.operators.define import operator
from surgery.kernels.reference.pattern_attention import HIDDEN
from torch import Tensor

HIDE, SEE, MORE = 0, 1, 2
ROWS = 512


def seen_keys(mask: Tensor, causal: bool) -> Tensor:
    """uint8 [B, Sk]: 1 for a key that the mask shows to every query (causal: to every query from its own on), 0 for one
    that it hides from all. 2 everywhere if the mask is not made of these two alone: it then has to be applied as it is.

    mask   [B, 1, Sq, Sk] or [B, 1, 1, Sk], bool (True: seen) or added to scores (0: seen, -1e4 and less: hidden)
    causal whether queries, the last of the keys, see no key ahead of them

    Reads the whole mask, once for all layers that share it.
    """
    return OPERATOR(mask, causal)


def _run(mask: Tensor, causal: bool) -> Tensor:
    batch, keys = mask.shape[0], mask.shape[-1]
    more = torch.full((batch, keys), MORE, dtype=torch.uint8, device=mask.device)
    if mask.dim() != 4 or mask.shape[1] != 1 or (mask.shape[2] == 1 and causal and keys > 1):
        return more
    last = _shown(mask[:, :, -1:])
    if last is None:
        return more
    queries = mask.shape[2]
    for start in range(0, queries, ROWS):
        shown = _shown(mask[:, :, start : start + ROWS])
        expected = last.expand(-1, -1, min(ROWS, queries - start), -1)
        expected = expected.tril(keys - queries + start) if causal else expected
        if shown is None or not torch.equal(shown, expected):
            return more
    return last[:, 0, 0].to(torch.uint8)


def _shown(mask: Tensor) -> Tensor | None:
    """bool, or None where scores are changed rather than hidden."""
    if mask.dtype == torch.bool:
        return mask
    seen = mask == 0
    return seen if bool((seen | (mask <= HIDDEN)).all()) else None


def _fake(mask: Tensor, causal: bool) -> Tensor:
    return mask.new_empty((mask.shape[0], mask.shape[-1]), dtype=torch.uint8)


OPERATOR = operator("seen_keys(Tensor mask, bool causal) -> Tensor", cpu=_run, cuda=_run, fake=_fake)
