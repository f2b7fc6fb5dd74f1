"""What there is to compile: each file in `kernels/triton/` says so itself, with `compilations(arch)`."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
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
    label       tells the compilations of one kernel apart; without one, `name` spells out the sizes
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

    @property
    def file(self) -> str:
        return self.kernel.partition(":")[0]

    @property
    def function(self) -> str:
        return self.kernel.partition(":")[2]

    @property
    def name(self) -> str:
        """The label, or the element type, sizes and launch where there is none."""
        if self.label:
            return self.label
        pointers = [kind[1:] for kind in self.signature.values() if kind.startswith("*")]
        sizes = [f"{key}={value}" for key, value in self.constexprs.items()]
        return " ".join([*pointers[:1], *sizes, f"w{self.num_warps}", f"s{self.num_stages}"])


def files(shelf: Path = SHELF) -> list[str]:
    """The kernel files, by name."""
    return sorted(path.stem for path in shelf.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, shelf: Path = SHELF) -> ModuleType:
    """A kernel file as a module: of the package, or of any other folder of such files."""
    if shelf == SHELF:
        return importlib.import_module(f"surgery.kernels.triton.{name}")
    qualified = f"surgery_kernels_elsewhere.{name}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, shelf / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    spec.loader.exec_module(module)
    return module


def of_file(name: str, arch: str, shelf: Path = SHELF) -> list[Compilation]:
    """What one file ships for an architecture; a file without `compilations` is an error."""
    module = load(name, shelf)
    if not hasattr(module, "compilations"):
        raise AttributeError(f"{name}.py has no compilations(arch): nothing of it would be compiled ahead")
    return list(module.compilations(arch))


def compilations(arch: str, shelf: Path = SHELF) -> Iterator[Compilation]:
    """Everything shipped for an architecture (`sm80`, `sm90`, `gfx942`)."""
    for name in files(shelf):
        yield from of_file(name, arch, shelf)
