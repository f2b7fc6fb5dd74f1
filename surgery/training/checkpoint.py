"""What resuming needs: a folder of steps, each written whole or not at all. safetensors and JSON, no pickle.

    FOLDER/step-000250/state.safetensors    weights, the optimizer's moments, the best weights so far
    FOLDER/step-000250/state.json           step, objective, history, and what it is a training of
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import read_tensors

FORMAT = "surgery.training/1"
STEP = "step-"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """`tensors` by `KIND.NAME`; `told` is plain JSON: step, objective, best, history, seconds."""

    tensors: Mapping[str, Tensor]
    told: Mapping[str, Any]

    def below(self, kind: str) -> dict[str, Tensor]:
        prefix = f"{kind}."
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def write(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Write a step beside the older ones, put it in place, and only then delete those. Raises OSError."""
    step = checkpoint.told["step"]
    target, partial = folder / f"{STEP}{step:06}", folder / f".{STEP}{step:06}.{os.getpid()}"
    text = json.dumps({"format": FORMAT, "identity": identity, **checkpoint.told}, allow_nan=False)
    try:
        partial.mkdir(parents=True)
        _put(partial / "state.safetensors", save({name: v.contiguous() for name, v in checkpoint.tensors.items()}))
        _put(partial / "state.json", text.encode())
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _steps(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def read(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The last step of a folder; None where there is none yet.

    Errors: S812 for the checkpoint of another training, which says what differs; S202 for a damaged one.
    """
    steps = _steps(folder)
    if not steps:
        return None
    last = steps[-1]
    try:
        told = json.loads((last / "state.json").read_text(encoding="utf-8"))
        known = told.pop("format") == FORMAT
        theirs = told.pop("identity")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SurgeryError(
            f"`{last}` is not a training's checkpoint: {error}", code="S202", help="delete the folder to train afresh"
        ) from error
    differences = [] if known else [f"its format is not {FORMAT}"]
    differences += [f"{name}: {_shown(theirs.get(name))} there, {_shown(mine)} here"
                    for name, mine in identity.items() if theirs.get(name) != mine]  # fmt: skip
    if differences:
        raise SurgeryError(
            f"the checkpoint in `{folder}` is of another training",
            code="S812",
            notes=differences,
            help="choose another folder, or delete this one to train afresh",
        )
    return Checkpoint(read_tensors(last / "state.safetensors"), told)


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{STEP}*") if path.name.removeprefix(STEP).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(STEP)))


def _put(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) < 60 else f"{text[:16]}…"
