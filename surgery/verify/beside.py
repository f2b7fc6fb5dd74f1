"""A module's outputs beside the original's on the same rows, batch by batch: never all of them at once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.placement import fitted
from surgery.verify.outputs import tensors_of

Progress = Callable[[int, int], None]
KEPT = 256 << 20
"""Bytes of the original's outputs that are kept; what is beyond is computed again for every module."""
WIDE = 64 << 20
"""Bytes of outputs in one batch, where the batch is not given."""
MOST = 64
EQUAL = {"output error": 0.0, "output cosine": 1.0, "logit kl": 0.0, "agreement": 1.0, "embedding cosine": 1.0}
"""What is only a comparison with the original, and what it is for the original itself."""


@dataclass(eq=False)
class Beside:
    """`inputs` are keyword tensors [N, ..], `options` whatever else the forward pass takes.

    One forward pass has `batch` rows; without it as many, up to 64, as keep its outputs under 64 MB.
    """

    original: Any
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @torch.no_grad()
    def __call__(
        self, module: Any, progress: Progress | None = None
    ) -> Iterator[tuple[slice, list[Tensor], list[Tensor]]]:
        """Per batch its rows, the module's float outputs and the original's: the same lists for the original itself."""
        batch = self._batch()
        for first in range(0, self.rows, batch):
            rows = slice(first, min(first + batch, self.rows))
            theirs = self._original(rows)
            ours = theirs if module is self.original else self._run(module, rows)
            yield rows, ours, theirs
            if progress is not None:
                progress(rows.stop, self.rows)

    def _batch(self) -> int:
        if self.batch is None:
            single = self._run(self.original, slice(0, 1))
            self.batch = max(1, min(MOST, WIDE // max(1, _bytes(single))))
        return self.batch

    def _original(self, rows: slice) -> list[Tensor]:
        if rows.start in self.kept:
            return self.kept[rows.start]
        found = self._run(self.original, rows)
        if _bytes(found) + sum(map(_bytes, self.kept.values())) <= KEPT:
            self.kept[rows.start] = found
        return found

    def _run(self, module: Any, rows: slice) -> list[Tensor]:
        placed = fitted(module, {name: value[rows] for name, value in self.inputs.items()})
        return [output for output in tensors_of(module(**placed, **self.options)) if output.is_floating_point()]


def _bytes(outputs: list[Tensor]) -> int:
    return sum(output.numel() * output.element_size() for output in outputs)
