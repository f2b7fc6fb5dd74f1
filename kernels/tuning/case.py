"""What the tuner measures: a row of a table, how to run it with a candidate in its place, and the candidates.

`tuning/cases/TABLE.py`, or the kernel file of that name, offers `tuning_cases(device) -> Iterator[Case]`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from surgery.kernels.tuning.candidates import neighbours
from surgery.kernels.tuning.pick import INTERPRETER, Config, architecture, shipped, substituted
from torch import Tensor

HOMES = ("surgery.kernels.tuning.cases", "surgery.kernels.triton")
# Makes the inputs of a row on the device, and gives back what runs the operator on them.
Call = Callable[[], Any]
Prepare = Callable[[Config, torch.device], Call]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """launch(candidate) runs the kernel with it and returns its outputs; nothing is allocated before the first."""

    dtype: str
    dim: int
    tile: str
    launch: Callable[[Config], Any]
    candidates: tuple[Config, ...]


class NothingToTune(LookupError):
    """No file says how to run the table's kernels."""


def inputs(row: Config, device: torch.device, *shapes: tuple[int, ...], grad: bool = False) -> list[Tensor]:
    """Normal inputs of the row's dtype, the same for every candidate."""
    generator = torch.Generator(device).manual_seed(0)
    made = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    return [each.to(DTYPES[row.dtype]).requires_grad_(grad) for each in made]


def sized(device: torch.device, full: int, small: int) -> int:
    """The representative size on a GPU; a small one where the interpreter only shows that the case runs."""
    return small if device.type == "cpu" else full


def gradient(out: Tensor, wanted: Sequence[Tensor]) -> Call:
    """What runs the backward alone, over and over."""
    wave = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, wanted, wave, retain_graph=True)


def without_gradient(call: Call) -> Call:
    """The forward as inference runs it."""
    return torch.no_grad()(call)


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
