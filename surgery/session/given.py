"""Data handed over in Python: the model's own inputs as a mapping of tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel
from surgery.models.checkpoint import require_finite
from surgery.models.corpus.mask import UNSCORED
from surgery.models.corpus.part import apart, parted
from surgery.models.data import Data
from surgery.models.digest import digest
from surgery.models.huggingface.architecture import task_of
from surgery.operations.kinds import Share

TARGETS = "targets"
"""The name of the right classes beside a model's inputs."""
CURE = "all rows given are measured on; pass calibration=0.5 beside them, and half of them are learned from"


def given_data(
    tensors: Mapping[str, Tensor], model: LoadedModel, calibration: str | float | int | None = None
) -> Data:
    """Inputs by name, [N, ..] each with the same N, and `targets` where they are known: int64 [N], the class of a row, or
    [N, T], the class at each position of the output, -100 where none counts. Loss and accuracy, or perplexity, are then
    measured on them, else the output error. Of transformers' models that write, the targets are the next ids.

    `calibration` of the rows, a share or a number, are drawn to calibrate on and kept out of the measurement; none
    without it. Errors: S212 for names, shapes or lengths that do not fit the model's example inputs, S204 for NaN.
    """
    faults = _faults(tensors, model)
    if faults:
        raise SurgeryError(
            f"the data given is not what {model.reference} takes",
            code="S212",
            notes=faults,
            help="give the tensors of a forward pass by name, with the samples along the first axis of each",
        )
    require_finite(tensors, "the data given")
    rows = {name: value.detach().cpu() for name, value in tensors.items()}
    count = len(next(iter(rows.values())))
    told = digest(rows)
    targets = None if TARGETS in _wanted(model) else rows.pop(TARGETS, None)
    task, targets = _judged(rows, targets, model)
    first = 0 if calibration is None else apart(share_of(calibration), count)
    held_out, kept = parted(rows, first)
    judged, learned = parted({TARGETS: targets}, first) if targets is not None else ({}, {})
    return Data(
        "given",
        f"{count - first} given inputs" + (f", {first} more to calibrate on" if first else ""),
        told,
        held_out,
        task=task,
        targets=judged.get(TARGETS),
        calibration=kept if first else None,
        calibration_targets=learned.get(TARGETS) if first else None,
    )


@contextmanager
def learning_from(data: Any, calibration: Any) -> Iterator[None]:
    """A refusal for want of rows to learn from (S323) says how some of those given become such."""
    try:
        yield
    except SurgeryError as error:
        unlearned = isinstance(data, Mapping) and calibration is None
        if not unlearned or all(one.code != "S323" for one in error.diagnostics):
            raise
        told = [replace(one, help=CURE) if one.code == "S323" else one for one in error.diagnostics]
        raise type(error)(diagnostics=told) from error


def share_of(calibration: str | float | int) -> Share:
    """0.5, "50%" or 128 rows. Errors: S212 for what is none of these."""
    share = Share.parse(calibration)
    if share.auto or (share.fraction is not None and not 0 <= share.fraction < 1):
        raise SurgeryError(
            f"calibration={calibration!r} is no share of rows", code="S212", help="write 0.5, or a number of rows such as 128"
        )
    return share


def _judged(
    rows: Mapping[str, Tensor], targets: Tensor | None, model: LoadedModel
) -> tuple[str | None, Tensor | None]:
    """What the rows can be judged by: the class of a row, the next token, or the token of a place."""
    ids = rows.get("input_ids")
    if targets is None:
        writes = ids is not None and set(rows) <= {"input_ids", "attention_mask"} and task_of(model.module) == "causal-lm"
        return ("causal-lm", _next_ids(ids, rows.get("attention_mask"))) if writes else (None, None)
    if targets.ndim == 1:
        return "classification", targets
    scored = targets[:, :-1] != UNSCORED
    follows = ids is not None and ids.shape == targets.shape and bool((targets[:, :-1] == ids[:, 1:])[scored].all())
    return "causal-lm" if follows else "masked-lm", targets


def _next_ids(ids: Tensor, real: Tensor | None) -> Tensor:
    """[N, T]: the id behind each, -100 where it or its successor is padding, and at the end."""
    following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], UNSCORED)], 1).long()
    if real is None:
        return following
    pairs = (real[:, :-1] != 0) & (real[:, 1:] != 0)
    return following.masked_fill(~torch.nn.functional.pad(pairs, (0, 1)), UNSCORED)


def _wanted(model: LoadedModel) -> dict[str, Tensor]:
    """The tensors that a forward pass takes by name."""
    named = model.example_inputs if isinstance(model.example_inputs, Mapping) else {}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _faults(tensors: Mapping[str, Tensor], model: LoadedModel) -> list[str]:
    wanted = _wanted(model)
    faults = [f"missing: {name}" for name in wanted if name not in tensors]
    faults += [f"unexpected: {name}" for name in tensors if name not in (*wanted, TARGETS)]
    faults += [f"{name} is no tensor" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if faults:
        return faults
    lengths = {name: len(value) if value.ndim else 0 for name, value in tensors.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        return [f"{name} has {length} rows" for name, length in lengths.items()]
    faults = [
        f"{name} is {list(value.shape)}, the example input {list(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.ndim != wanted[name].ndim
    ]
    targets = tensors.get(TARGETS)
    if TARGETS not in wanted and targets is not None and (targets.dtype is not torch.int64 or targets.ndim not in (1, 2)):
        faults.append(f"{TARGETS} is {targets.dtype} {list(targets.shape)}, not torch.int64 [N] or [N, T]")
    return faults
