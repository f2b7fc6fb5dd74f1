"""The timesteps a diffusion model lives on, as its network is told them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """`times` [T]: every timestep, least noise first. `sampled` [n]: those a sampler visits, noisiest first."""

    times: Tensor
    sampled: Tensor

    def window(self, when: "When") -> tuple[float, float]:
        """Lowest and highest timestep among the sampling steps `when` speaks of."""
        steps = len(self.sampled)
        part = self.sampled[: when.first] if when.first else self.sampled[max(steps - (when.last or steps), 0) :]
        return float(part.min()), float(part.max())


@dataclass(frozen=True)
class When:
    """In which sampling steps: every (neither is set), the `first` n, the noisiest, or the `last` n."""

    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> "When":
        """From `every`, `first N steps`, `last N steps`."""
        words = text.split()
        return cls() if words == ["every"] else cls(**{words[0]: int(words[1])})

    @property
    def always(self) -> bool:
        return self.first is None and self.last is None


def default_times(like: Tensor, length: int = 1000) -> Tensor:
    """The timesteps of a network nothing is known of: 0 .. length - 1 for integers, [0, 1) in as many for real ones.

    `like` is an example timestep input, whose dtype is kept; a real one above 1 says the network counts too.
    """
    counts = not like.is_floating_point() or (not like.is_meta and float(like.max()) > 1)
    times = torch.arange(length, dtype=torch.float64)
    return (times if counts else times / length).to(like.dtype)
