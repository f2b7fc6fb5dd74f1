"""Which token comes next."""

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.generation.faults import wrong


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token, always; above it one is drawn, out of the `top_k` likeliest and out
    of the fewest that hold `top_p` of the probability."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        faults = [
            (self.temperature < 0, f"temperature={self.temperature}", "0 for the likeliest token, or above"),
            (self.top_k is not None and self.top_k < 1, f"top_k={self.top_k}", "a whole number from 1"),
            (self.top_p is not None and not 0 < self.top_p <= 1, f"top_p={self.top_p}", "above 0, at most 1"),
            (self.temperature == 0 and (self.top_k or self.top_p), "temperature=0", "above 0, to draw from several"),
        ]
        for bad, what, cure in faults:
            if bad:
                raise wrong(f"`{what}` is out of range", f"give {cure}")

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """[B, V] → [B] int64."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scores = logits.float() / self.temperature
        if self.top_k is not None:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None:
            scores = self._nucleus(scores)
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]

    def _nucleus(self, scores: Tensor) -> Tensor:
        ordered, order = scores.sort(descending=True)
        shares = ordered.softmax(-1)
        beyond = shares.cumsum(-1) - shares >= self.top_p
        return scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
