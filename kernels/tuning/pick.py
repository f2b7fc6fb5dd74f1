"""The tile and launch of a Triton kernel, from the tables in `configs/`.

A table is `configs/OPERATOR.json`: architecture → list of rows {"dtype", "dim", "tile", "blocks", "num_warps",
"num_stages", "options"}. `dim` is the head dim (or the inner width) the row serves up to, `tile` the class of tile (as
`"q128"`, `"decode"`), `blocks` the constexpr sizes of the kernel. Never keyed by how many blocks or edges there are:
a kernel would then be compiled anew for every mask.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TABLES = Path(__file__).parent / "configs"
ARCHITECTURES = ("sm80", "sm90", "gfx942")
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Config:
    """One row: constexpr sizes by name, launch, and what only one backend of Triton knows (`waves_per_eu`, …)."""

    dtype: str
    dim: int
    tile: str
    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def launch(self) -> dict[str, Any]:
        """Keyword arguments of a kernel launch: sizes, warps, stages, options."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, **self.options}


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def architecture(device: torch.device) -> str:
    """The table to read for a device: the newest one that the device can run."""
    if interpreted() or device.type == "cpu":
        return INTERPRETER
    if torch.version.hip:
        return "gfx942"
    return "sm90" if torch.cuda.get_device_capability(device) >= (9, 0) else "sm80"


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` → `bf16`, as tables write it; what no table has, as torch names it."""
    known = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return known.get(dtype, str(dtype).removeprefix("torch."))


@functools.cache
def table(operator: str) -> dict[str, tuple[Config, ...]]:
    """The shipped table of an operator."""
    read = json.loads((TABLES / f"{operator}.json").read_text(encoding="utf-8"))
    return {arch: tuple(Config(**row) for row in rows) for arch, rows in read.items() if arch != "measured"}


_instead: dict[tuple[str, str], tuple[Config, ...]] = {}


def shipped(operator: str, arch: str) -> tuple[Config, ...]:
    """All rows of an operator for an architecture: what is compiled ahead in the tests."""
    if (operator, arch) in _instead:
        return _instead[operator, arch]
    return table(operator).get(arch, ())


@contextmanager
def substituted(operator: str, arch: str, rows: tuple[Config, ...]) -> Iterator[None]:
    """Let a table ship other rows for an architecture, until the block ends: how candidates are tried."""
    before = _instead.get((operator, arch))
    _instead[operator, arch] = rows
    pick.cache_clear()
    try:
        yield
    finally:
        _instead.pop((operator, arch))
        if before is not None:
            _instead[operator, arch] = before
        pick.cache_clear()


@functools.cache
def pick(operator: str, arch: str, dtype: torch.dtype, dim: int, tile: str) -> Config:
    """The row of a dtype and tile class with the smallest `dim` that holds `dim`. Raises LookupError if there is none.

    fp16 uses bf16's rows where it has none of its own: tiles take the same room.
    """
    names = (dtype_name(dtype), "bf16") if dtype == torch.float16 else (dtype_name(dtype),)
    for name in names:
        rows = [row for row in shipped(operator, arch) if (row.dtype, row.tile) == (name, tile) and row.dim >= dim]
        if rows:
            return min(rows, key=lambda row: row.dim)
    raise LookupError(f"no tuned row of {operator} for {arch}, {names[0]}, dim {dim}, tile {tile}")
