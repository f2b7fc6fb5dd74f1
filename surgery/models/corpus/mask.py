"""The masked-language task: some tokens are hidden, and the model names them."""

from typing import Any

import torch
from torch import Tensor

SHARE = 0.15
UNSCORED = -100
"""The target where nothing is to be named; cross-entropy's `ignore_index`."""


def masked(tokens: Tensor, real: Tensor, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens [N, T] with 15 % of the ordinary ones, at least one a row, hidden, and targets [N, T] that name them.

    Every chosen token becomes the mask token (BERT's training left some in place): each is then as hard to name.
    """
    special = torch.isin(tokens, torch.tensor(sorted(tokenizer.all_special_ids)))
    score = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    score = score.masked_fill(special | (real == 0), 2.0)
    hidden = (score < SHARE) | (score == score.min(1, keepdim=True).values)
    hidden &= score < 1
    return tokens.masked_fill(hidden, tokenizer.mask_token_id), tokens.masked_fill(~hidden, UNSCORED)
