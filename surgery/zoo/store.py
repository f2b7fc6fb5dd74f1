"""Read and write zoo weights and training states: safetensors only, whole or not at all.

A file has one entry of metadata: safetensors writes several in random order, and equal trainings shall give equal bytes.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import read_tensors


def save_weights(path: Path, tensors: dict[str, Tensor], name: str, step: int) -> None:
    """Weights as they ship: rounded once to float16."""
    rounded = {key: value.to(torch.float16).contiguous() for key, value in tensors.items()}
    _write(path, rounded, {"surgery.zoo/1": f"{name}, {step} steps"})


def save_state(path: Path, tensors: dict[str, Tensor]) -> None:
    _write(path, {key: value.contiguous() for key, value in tensors.items()}, {"surgery.training/1": ""})


def load_state(path: Path) -> dict[str, Tensor]:
    """Errors: S802 where there is none, S202 where it is damaged."""
    if not path.is_file():
        raise SurgeryError(
            f"nothing to resume: there is no `{path}`",
            code="S802",
            help="train without --resume, or give the --out of the training to go on with",
        )
    return read_tensors(path)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(save(tensors, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
