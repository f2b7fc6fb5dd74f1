"""Which rows are taken, and which of them are kept apart to calibrate on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.operations.kinds import Share


def drawn(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` rows, in an order that depends on the seed alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()


def apart(calibration: Share | int | None, rows: int) -> int:
    """How many of `rows` calibrate, half of them by default. Errors: S212 where none is left to measure on."""
    share = Share(count=calibration) if isinstance(calibration, int) else calibration
    count = rows // 2 if share is None else share.of(rows)
    if count >= rows:
        raise SurgeryError(
            f"calibration={share} of {rows} rows leaves none to measure on",
            code="S212",
            help=f"write less than {rows}, or more `samples`",
        )
    return count


def parted(
    tensors: Mapping[str, Tensor], first: int, *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows that measure and the `first` that calibrate, drawn with the seed, each part in the order given."""
    count = len(next(iter(tensors.values())))
    order = torch.tensor(drawn(count, count, seed))
    parts = order[first:].sort().values, order[:first].sort().values
    held_out, kept = ({name: value[part] for name, value in tensors.items()} for part in parts)
    return held_out, kept
