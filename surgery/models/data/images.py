"""`images:"folder"`: pictures in a folder and the folders in it, sized and normalised as the model was trained."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint
from surgery.models.corpus.part import apart, drawn
from surgery.models.data.value import Data
from surgery.models.huggingface.pixels import pixels
from surgery.models.loaded import LoadedModel

SETTINGS = ("calibration",)
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
ROWS = 256


def load(location: str, model: LoadedModel, *, samples: int | None, seed: int, calibration: Any = None) -> Data:
    """Distinct pictures drawn with the seed, some kept apart to calibrate on.

    Where each lies in a folder named like one of the model's classes, that is its label.

    Errors: S201 missing, S212 too few pictures, one that cannot be read, or a model of other inputs.
    """
    folder = Path(location.strip("\"'")).expanduser()
    _refuse_other_inputs(model)
    found = _distinct(folder)
    wanted = samples or min(ROWS, len(found))
    if len(found) < max(wanted, 2):
        raise _too_few(folder, len(found), max(wanted, 2))
    paths = list(found.values())
    chosen = [paths[index] for index in drawn(len(paths), wanted, seed)]
    count = apart(calibration, wanted)
    labels, held_out = _labels(chosen, model), chosen[count:]
    return Data(
        reference=f"images:{location}",
        description=f"{len(held_out)} pictures of {folder.name}, {count} more to calibrate on",
        sha256=hashlib.sha256("".join(sorted(found)).encode()).hexdigest(),
        inputs=_inputs(held_out, model),
        task=model.source.get("task"),
        targets=None if labels is None else labels[count:],
        calibration=_inputs(chosen[:count], model) if count else None,
        calibration_targets=None if labels is None or not count else labels[:count],
    )


def _distinct(folder: Path) -> dict[str, Path]:
    """Pictures by the hash of their bytes, in the order of their names."""
    if not folder.is_dir():
        raise SurgeryError(f"no pictures at `{folder}`: there is no such folder", code="S201", help="check the path")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(fingerprint(path), path)
    return found


def _inputs(paths: Sequence[Path], model: LoadedModel) -> dict[str, Tensor]:
    example = model.example_inputs["pixel_values"]
    settings = json.loads(model.source.get("tokenizer_files", {}).get("preprocessor_config.json", b"{}"))
    return {"pixel_values": torch.stack([pixels(path, settings, tuple(example.shape[1:])) for path in paths])}


def _labels(paths: Sequence[Path], model: LoadedModel) -> Tensor | None:
    """Only where every picture has one: a loss over some of them would be of another data set."""
    named = (model.source.get("config") or {}).get("label2id") or {}
    if model.source.get("task") != "classification" or any(path.parent.name not in named for path in paths):
        return None
    return torch.tensor([int(named[path.parent.name]) for path in paths])


def _refuse_other_inputs(model: LoadedModel) -> None:
    names = list(model.example_inputs) if isinstance(model.example_inputs, dict) else []
    if names != ["pixel_values"]:
        raise SurgeryError(
            f"pictures do not fit {model.reference}: its inputs are {', '.join(names) or 'not named'}",
            code="S212",
            help='write `data noise`, or `data tensors:"file.safetensors"` with the model\'s own inputs',
        )


def _too_few(folder: Path, there: int, wanted: int) -> SurgeryError:
    return SurgeryError(
        f"`{folder}` holds {there} different pictures, not {wanted}",
        code="S212",
        notes=(f"read are {', '.join(KINDS)}, in folders below as well", "one that is there twice counts once"),
        help=f"write `samples={there}` or less" if there > 1 else "give a folder with more pictures",
    )
