"""Load a bundle: torch and surgery are all it needs."""

import os
from pathlib import Path
from typing import Any

import torch

from surgery.bundle.faults import DEVICE, LIBRARY
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
from surgery.bundle.settings import read_settings
from surgery.bundle.weights import read_tensors, tensor_files
from surgery.diagnostics import BundleError


def load(
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    verify: bool = True,
    library: str | None = None,
) -> Any:
    """The module a bundle holds, called like the original, in evaluation mode, on `device` (by default the CPU).

    Safe for bundles from strangers: nothing is unpickled, evaluated or imported, and only operators that compute are
    admitted. `verify` compares every file with the hash in surgery.json, which finds damage; without it only the
    graph and the tensors are read.

    Returns a LoadedModule, or with `library="transformers"` one of transformers' models around it, whose `generate()`
    and pipelines are transformers' own. Raises BundleError.
    """
    place = _device(device)
    try:
        module = _read(Path(os.path.abspath(folder)), place, verify)
        return module if library is None else in_library(module, read_manifest(folder), library)
    except OSError as error:
        raise unreadable(str(error.filename or folder), error) from error


def _read(folder: Path, device: torch.device, verify: bool) -> LoadedModule:
    restore(folder)
    files = read_manifest(folder)["files"]
    if verify:
        verify_files(folder, files)
    parsed = read_graph(read_bytes(folder, GRAPH), device)
    module = LoadedModule(parsed.graph, read_tensors(folder, tensor_files(files), parsed.table, device), device)
    module.meta["generation"] = read_settings(folder, files)
    return module


def in_library(module: LoadedModule, manifest: dict[str, Any], library: str) -> Any:
    """A loaded module as a model of the library it came from. Raises BundleError (S717)."""
    source = manifest.get("source")
    whole = isinstance(source, dict) and isinstance(source.get("config"), dict) and "architecture" in source
    if library != "transformers" or not whole or source.get("library") != library:
        known = source.get("library") if isinstance(source, dict) else None
        raise BundleError(
            f"this bundle is no model of `{library}`" + (f", but of `{known}`" if known else ""),
            code=LIBRARY,
            help="leave `library` out: the module is called like the original, and a decoder generates by itself",
        )
    try:
        from surgery.reload.adapter import adapted
    except ImportError as error:
        raise BundleError(
            f"`{library}` is not installed ({error})", code=LIBRARY, help=f"`pip install {library}`, or leave it out"
        ) from error
    return adapted(module, source)


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
