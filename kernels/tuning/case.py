"""What the tuner measures: a row of a table, how to run it with a candidate in its place, and the candidates.

`tuning/cases/TABLE.py`, or the kernel file of that name, offers `tuning_cases(device) -> Iterator[Case]`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from surgery.kernels.tuning.candidates import neighbours
from surgery.kernels.tuning.pick import INTERPRETER, Config, architecture, shipped, substituted

HOMES = ("surgery.kernels.tuning.cases", "surgery.kernels.triton")
# Makes the inputs of a row on the device, and gives back what runs the operator on them.
Call = Callable[[], Any]
Prepare = Callable[[Config, torch.device], Call]


class Case(NamedTuple):
    """launch(candidate) runs the kernel with it and returns its outputs; nothing is allocated before the first."""

    dtype: str
    dim: int
    tile: str
    launch: Callable[[Config], Any]
    candidates: tuple[Config, ...]


class NothingToTune(LookupError):
    """No file says how to run the table's kernels."""


def cases(table: str, device: torch.device) -> Iterator[Case]:
    """The cases of a table. Raises NothingToTune where nobody offers any."""
    for home in HOMES:
        if importlib.util.find_spec(f"{home}.{table}") is None:
            continue
        module = importlib.import_module(f"{home}.{table}")
        if hasattr(module, "tuning_cases"):
            return module.tuning_cases(device)
    raise NothingToTune(f"nothing says how to run {table}: tuning/cases/{table}.py would, with tuning_cases(device)")


def each_row(table: str, device: torch.device, prepare: Prepare) -> Iterator[Case]:
    """A case for every shipped row: the public operator, with the candidate in that row's place."""
    arch = architecture(device)
    for row in shipped(table, arch):
        candidates = () if arch == INTERPRETER else neighbours(row, arch)
        yield Case(row.dtype, row.dim, row.tile, _launcher(table, arch, row, device, prepare), candidates)


def _launcher(table: str, arch: str, row: Config, device: torch.device, prepare: Prepare) -> Callable[[Config], Any]:
    kept: list[Call] = []

    def launch(candidate: Config) -> Any:
        if not kept:
            kept.append(prepare(row, device))
        with in_place(table, arch, candidate):
            return kept[0]()

    return launch


def in_place(table: str, arch: str, candidate: Config):
    """A context in which the table ships the candidate instead of the row for its dtype, dim and tile."""
    rows = [row for row in shipped(table, arch) if place(row) != place(candidate)]
    return substituted(table, arch, (*rows, replace(candidate)))


def place(row: Config) -> tuple[str, int, str]:
    """What a row is found by."""
    return row.dtype, row.dim, row.tile
