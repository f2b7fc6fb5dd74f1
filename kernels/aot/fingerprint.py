"""The hash of all that a compilation's machine code depends on: files, arguments, options, chip, Triton, this harness.

Whole files are hashed, not kernels: Triton's own `cache_key` depends on the order in which a process first asked for
keys, and on memory addresses where two files share a constant.
"""

import ast
import functools
import hashlib
from pathlib import Path

from surgery.kernels.aot.manifest import Compilation

PACKAGE = "surgery.kernels.triton"
# A record of the cache holds for the code that made it.
MAKERS = tuple(Path(__file__).with_name(f"{name}.py") for name in ("compile", "resources", "targets"))


def fingerprint(compilation: Compilation, arch: str, triton: str, shelf: Path) -> str:
    """The same in every process; anything that may change the machine code, or how it is read, changes it."""
    arguments = [sorted(each.items()) for each in (compilation.signature, compilation.constexprs, compilation.options)]
    launch = (compilation.num_warps, compilation.num_stages, sorted(compilation.aligned))
    said = repr((compilation.kernel, arguments, launch, arch, triton))
    texts = (*sources(shelf / f"{compilation.file}.py"), *(path.read_text(encoding="utf-8") for path in MAKERS))
    return hashlib.sha256("\0".join([said, *texts]).encode()).hexdigest()[:32]


@functools.cache
def sources(path: Path) -> tuple[str, ...]:
    """The texts of a kernel file and of the files of its shelf that it imports, directly or through another.

    Read once: asked for before the file is loaded, it is the text that was loaded, whatever becomes of the file.
    """
    found: dict[Path, str] = {}
    left = [path]
    while left:
        each = left.pop()
        if each not in found and each.exists():
            found[each] = each.read_text(encoding="utf-8")
            left += [each.with_name(f"{name}.py") for name in imported(found[each])]
    return tuple(found[each] for each in sorted(found))


def imported(text: str) -> list[str]:
    """Names that may be files of the shelf, from `from surgery.kernels.triton._common import …` and its like."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(PACKAGE)):
            names += [(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)]
        if isinstance(node, ast.Import):
            names += [alias.name.rpartition(".")[2] for alias in node.names if alias.name.startswith(PACKAGE)]
    return names
