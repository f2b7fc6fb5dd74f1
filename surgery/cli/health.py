"""The state of an installation, as data: a check for each thing that surgery stands on.

Every check runs even where another fails, so that one run tells all there is to mend.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

REQUIRED = ("torch", "numpy", "lark", "pyyaml", "rich", "safetensors", "matplotlib", "jinja2")
EXTRAS = {
    "transformers": ("hf", "Hugging Face models"),
    "diffusers": ("diffusion", "diffusers models"),
    "scikit-learn": ("zoo", "training the zoo's models again"),
}
SHELVES = {"grammar": "surgery.lark", "specs": "quickstart.surgery", "kernels": "README.md"}
OLDEST_TORCH = (2, 11)


@dataclass(frozen=True)
class Check:
    """`state` is "ok", "warning" (something is missing that is not always needed) or "broken"; `cure` mends it."""

    name: str
    state: str
    found: str
    cure: str = ""


def examine(compile_something: bool = False) -> list[Check]:
    """All checks; `compile_something` also runs torch.compile on a small function, which takes seconds."""
    parts: list[Callable[[], Iterator[Check]]] = [python, packages, extras, devices, shelves, operations, kernels, here]
    if compile_something:
        parts.append(compiled)
    return [check for part in parts for check in part()]


def python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < (3, 11)
    yield Check("python", "broken" if old else "ok", found, "use Python 3.11 or newer" if old else "")
    try:
        yield Check("surgery", "ok", version("model-surgery"))
    except PackageNotFoundError:
        yield Check("surgery", "ok", "a checkout that is not installed")


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def packages() -> Iterator[Check]:
    """What surgery requires; torch also by its age, triton only on Linux."""
    for name in REQUIRED:
        found = installed(name)
        if found is None:
            yield Check(name, "broken", "not installed", f"pip install {name}")
        elif name == "torch" and release(found) < OLDEST_TORCH:
            yield Check(name, "broken", f"{found} is too old", "pip install --upgrade 'torch>=2.11'")
        else:
            yield Check(name, "ok", found)
    found = installed("triton")
    if sys.platform == "linux":
        yield (
            Check("triton", "ok", found) if found else Check("triton", "warning", "not installed", "pip install triton")
        )


def release(text: str) -> tuple[int, ...]:
    """`2.13.0+cpu` → (2, 13)."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+")[0].split(".")[:2])


def extras() -> Iterator[Check]:
    for name, (extra, purpose) in EXTRAS.items():
        found = installed(name)
        missing = f"not installed: {purpose} need it" if extra != "zoo" else f"not installed: {purpose} needs it"
        cure = "" if found else f"pip install 'model-surgery[{extra}]'"
        yield Check(name, "ok" if found else "warning", found or missing, cure)


def devices() -> Iterator[Check]:
    """Device, threads, C++ compiler. Needs torch; says so where it cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        yield Check("device", "broken", f"torch cannot be imported: {reason}", "install torch again: see pytorch.org")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Check("device", "ok", f"{names} (CUDA {torch.version.cuda})")
    else:
        yield Check("device", "ok", f"CPU, {torch.backends.cpu.get_cpu_capability()}, no CUDA device")
    yield Check("threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    yield cxx()


def cxx() -> Check:
    """The C++ compiler that torch.compile would use on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return Check("c++ compiler", "ok", get_cpp_compiler())
    except InvalidCxxCompiler:
        cure = "install g++ or clang++, or name one in CXX; without it compiled latency is left out of reports"
        return Check("c++ compiler", "warning", "none that works", cure)


def shelves() -> Iterator[Check]:
    """The folders that ship with the package, each known by a file in it."""
    from surgery.layout import shelf

    for name, file in SHELVES.items():
        folder = shelf(name)
        if (folder / file).is_file():
            yield Check(f"{name}/", "ok", str(folder))
        else:
            yield Check(f"{name}/", "broken", f"no {file} in {folder}", "install the package again")


def operations() -> Iterator[Check]:
    """Every verb with its owner; a plugin that cannot be loaded is told, not hidden."""
    from surgery.diagnostics.errors import SurgeryError
    from surgery.operations import registry

    try:
        for verb in registry.verbs():
            yield Check(f"operation {verb}", "ok", registry.owner(verb))
    except SurgeryError as error:
        yield Check("operations", "broken", str(error.diagnostics[0].message), error.diagnostics[0].help)


def kernels() -> Iterator[Check]:
    """Kernels of other packages, from the entry points `surgery.kernels`: found, not imported."""
    points = sorted(entry_points(group="surgery.kernels"), key=lambda point: point.name)
    for point in points:
        owner = f" ({point.dist.name} {point.dist.version})" if point.dist else ""
        yield Check(f"kernel {point.name}", "ok", f"{point.value}{owner}")


def here() -> Iterator[Check]:
    """Whether the working directory takes a bundle."""
    folder = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Check("working directory", "ok", f"{folder} can be written to")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        cure = "give `--out` a folder elsewhere, or change to another directory"
        yield Check("working directory", "warning", f"{folder}: {reason}", cure)


def compiled() -> Iterator[Check]:
    """torch.compile on a small function."""
    import torch
    from torch._dynamo.exc import TorchDynamoException

    try:
        out = torch.compile(lambda x: torch.relu(x) + 1, dynamic=False)(torch.zeros(8))
    except (TorchDynamoException, RuntimeError, OSError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        yield Check("torch.compile", "warning", f"{type(error).__name__}: {reason}", "see the C++ compiler above")
        return
    right = bool((out == 1).all())
    yield Check("torch.compile", "ok" if right else "broken", "works" if right else "gives wrong results")
