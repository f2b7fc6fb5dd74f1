"""Compile a kernel's C++ source on first use, keep the result, load it with ctypes.

A source `NAME.cpp` beside this file exports plain C functions on pointers and sizes. It sees no torch header, so that
it compiles in seconds. The shared object is kept under a name that hashes sources, compiler and processor, in
`$SURGERY_CACHE/native`, else `$XDG_CACHE_HOME/surgery/native`, else `~/.cache/surgery/native`, a folder only its
owner may write to. OpenMP is the one that torch has loaded already: both agree on the name `libgomp.so.1`.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from surgery.layout import cache

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
HEADERS = ("*.hpp",)
SECONDS = 300


class NativeUnavailable(RuntimeError):
    """This machine cannot compile or load a native kernel; the message says why."""


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """The compiled `NAME.cpp`. Raises NativeUnavailable where there is no compiler, no writable cache, or it fails.

    Callers declare `argtypes`; every function takes `threads` and must give the same bits for any number of them.
    """
    import torch  # noqa: F401 -- its OpenMP has to be loaded first, ours then is the same one

    found = _attempt(name)
    if isinstance(found, str):
        raise NativeUnavailable(found)
    return found


def available(name: str) -> str | None:
    """None if the kernel can run here, else why not. Compiles it if that was not done yet."""
    found = _attempt(name)
    return found if isinstance(found, str) else None


@functools.cache
def _attempt(name: str) -> ctypes.CDLL | str:
    if os.environ.get("SURGERY_NATIVE", "1") == "0":
        return "native kernels are switched off by SURGERY_NATIVE=0"
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler: install g++ or clang++, or set CXX"
    try:
        path = _compiled(name, compiler)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        return f"{compiler} could not compile {name}.cpp: {_first_error(error.stderr)}"
    except subprocess.TimeoutExpired:
        return f"{compiler} took over {SECONDS} s on {name}.cpp"
    except OSError as error:
        return f"the compiled {name}.cpp could not be kept or loaded: {error}"


def find_compiler() -> str | None:
    """`$CXX`, else the first of g++, clang++, c++ on the path."""
    wanted = os.environ.get("CXX")
    return next((path for each in (wanted, "g++", "clang++", "c++") if each and (path := shutil.which(each))), None)


def _compiled(name: str, compiler: str) -> Path:
    """The shared object, compiled if it is not kept yet."""
    flags = (*FLAGS, *processor_flags(), *openmp_flags(compiler))
    path = cache_folder() / f"{name}-{_fingerprint(name, compiler, flags)}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}-") as folder:
        made = Path(folder) / path.name
        command = [compiler, *flags, str(SOURCES / f"{name}.cpp"), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        os.replace(made, path)
    return path


def processor_flags() -> tuple[str, ...]:
    """Use all of this processor: what is compiled here runs here."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


@functools.cache
def openmp_flags(compiler: str) -> tuple[str, ...]:
    """OpenMP where the compiler has it; without it the kernels run on one thread."""
    probe = "#include <omp.h>\nint f() { return omp_get_max_threads(); }\n"
    command = [compiler, "-fopenmp", "-shared", "-fPIC", "-x", "c++", "-", "-o", os.devnull]
    tried = subprocess.run(command, input=probe, capture_output=True, text=True, timeout=SECONDS, check=False)
    return ("-fopenmp",) if tried.returncode == 0 else ()


def cache_folder() -> Path:
    """Where compiled kernels are kept; made private to its owner, refused if others may write to it."""
    folder = cache("native")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = folder.stat()
    if held.st_uid != os.getuid() or held.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be written by others: code is not loaded from there")
    return folder


def _fingerprint(name: str, compiler: str, flags: tuple[str, ...]) -> str:
    """A hash of all that the shared object depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    headers = sorted(path for pattern in HEADERS for path in SOURCES.glob(pattern))
    texts = [path.read_text(encoding="utf-8") for path in (SOURCES / f"{name}.cpp", *headers)]
    return hashlib.sha256("\0".join([*texts, compiler, version, *flags, _processor()]).encode()).hexdigest()[:20]


def _processor() -> str:
    """Instruction sets of this machine: a home folder may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["no message"]
    return lines[0][:300]
