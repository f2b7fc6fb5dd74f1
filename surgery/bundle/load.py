"""Load a bundle: torch and surgery are all it needs."""

import os
from pathlib import Path

import torch

from surgery.bundle.faults import DEVICE
from surgery.bundle.files import (
    GRAPH,
    read_bytes,
    read_manifest,
    unreadable,
    verify_files,
)
from surgery.bundle.folder import restore
from surgery.bundle.module import LoadedModule
from surgery.bundle.parse import read_graph
from surgery.bundle.weights import read_tensors, tensor_files
from surgery.diagnostics import BundleError


def load(
    folder: str | os.PathLike[str], *, device: str | torch.device | None = None, verify: bool = True
) -> LoadedModule:
    """The module a bundle holds, called like the original, in evaluation mode, on `device` (by default the CPU).

    Safe for bundles from strangers: nothing is unpickled, evaluated or imported, and only operators that compute are
    admitted. `verify` compares every file with the hash in surgery.json, which finds damage; without it only the
    graph and the tensors are read. Raises BundleError.
    """
    path = Path(os.path.abspath(folder))
    restore(path)
    manifest = read_manifest(path)
    place = _device(device)
    if verify:
        verify_files(path, manifest["files"])
    parsed = read_graph(read_bytes(path, GRAPH), place)
    try:
        tensors = read_tensors(path, tensor_files(manifest["files"]), parsed.table, place)
    except OSError as error:
        raise unreadable(error.filename or "model.safetensors", error) from error
    return LoadedModule(parsed.graph, tensors, place)


def _device(device: str | torch.device | None) -> torch.device:
    """A device that is there. Raises BundleError."""
    try:
        wanted = torch.device(device or "cpu")
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"device `{device}` is not available here",
            code=DEVICE,
            help="leave `device` out to load onto the CPU",
        ) from error
