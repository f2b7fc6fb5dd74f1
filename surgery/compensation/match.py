"""Let chosen parameters of a cut network follow the outputs of the whole one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HELD_OUT_EVERY = 8

Network = Callable[..., Tensor]
Miss = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows -> squared error, squared size of what was wanted
Progress = Callable[[int, float], None]


class Matched(NamedTuple):
    """E‖student − teacher‖² / E‖teacher‖² on held-out inputs, before and after; `after` is never above `before`."""

    before: float
    after: float


def match(
    student: Network,
    teacher: Network,
    parameters: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    *,
    steps: int = 600,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Matched:
    """Move `parameters` of the student, in place, until its outputs are the teacher's on `inputs`.

        min  E ‖student(x, t, y) − teacher(x, t, y)‖²   by Adam, the rate falling to zero over the second half

    What `refit` cannot reach: with n features the consumers span n directions, and this chooses those that the
    network's output depends on. Needs no images: x may be the states that the teacher's own sampler passes through.

    student, teacher  called with keyword inputs, each returns one floating tensor
    inputs            keyword -> [N, ...], N ≥ 16; every eighth row is held out, and judges
    Whatever does not lower the held-out error is undone. The same seed gives the same result.
    """
    count = len(next(iter(inputs.values())))
    if count < 2 * HELD_OUT_EVERY or any(len(value) != count for value in inputs.values()):
        raise ValueError(f"inputs need the same number of rows, at least {2 * HELD_OUT_EVERY}; one has {count}")
    rows = torch.arange(count)
    judged = rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    taught = rows[rows % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    first = [parameter.detach().clone() for parameter in parameters]
    tracked = [parameter.requires_grad for parameter in parameters]

    def miss(chosen: Tensor) -> tuple[Tensor, Tensor]:
        given = {name: value[chosen] for name, value in inputs.items()}
        with torch.no_grad():
            wanted = teacher(**given)
        return (student(**given) - wanted).square().sum(), wanted.square().sum()

    draw = torch.Generator().manual_seed(seed)
    batches = (taught[torch.randint(len(taught), (batch,), generator=draw)] for _ in range(steps))
    before = _share(miss, judged.split(batch))
    _descend(miss, parameters, batches, lambda step: rate * min(1.0, 2 * (steps - step) / steps), progress)
    after = _share(miss, judged.split(batch))
    if not after < before:
        _restore(parameters, first)
        after = before
    for parameter, was in zip(parameters, tracked, strict=True):
        parameter.requires_grad_(was)
    return Matched(before, after)


def _descend(
    miss: Miss,
    parameters: Sequence[Tensor],
    batches: Iterable[Tensor],
    rate: Callable[[int], float],
    progress: Progress | None,
) -> None:
    """Adam on `parameters`, one step a batch; gradients flow to nothing else and none are left behind."""
    optimizer = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], betas=(0.9, 0.99))
    for step, chosen in enumerate(batches):
        missed, whole = miss(chosen)
        error = missed / whole
        for parameter, gradient in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
        if progress is not None:
            progress(step + 1, float(error.detach()))
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _share(miss: Miss, batches: Sequence[Tensor]) -> float:
    parts = [miss(chosen) for chosen in batches]
    return float(sum(missed for missed, _ in parts) / sum(whole for _, whole in parts))


@torch.no_grad()
def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
