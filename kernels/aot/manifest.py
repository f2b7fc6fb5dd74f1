"""What there is to compile: each file in `kernels/triton/` says so itself, with `compilations(arch)`."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHELF = Path(__file__).parents[1] / "triton"


@dataclass(frozen=True)
class Compilation:
    """A kernel with all that fixes its machine code.

    kernel      `file:function`, as `block_attention_forward:forward`
    signature   argument → Triton type (`*bf16`, `i32`, `fp32`, …), constexprs as `constexpr`
    constexprs  argument → value
    aligned     arguments known to be divisible by 16 (pointers and strides: vector loads depend on it)
    expects     machine instructions that must occur in the code for an architecture, as {"sm90": ("wgmma",)}
    """

    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    expects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = ""


def files() -> list[str]:
    """The kernel files, by name."""
    return sorted(path.stem for path in SHELF.glob("*.py") if not path.stem.startswith("_"))


def compilations(arch: str) -> Iterator[Compilation]:
    """Everything shipped for an architecture (`sm80`, `sm90`, `gfx942`)."""
    for name in files():
        module = importlib.import_module(f"surgery.kernels.triton.{name}")
        yield from module.compilations(arch)
