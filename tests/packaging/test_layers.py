"""Imports go one way through the rooms of the package, and importing it stays light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "surgery"

# A room may import itself, rooms of an earlier row, and rooms of its own row that stand before it. What loads models
# and data by name stands apart from what the zoo builds on.
ROWS = """
layout interleave atomic
diagnostics
language
operations
check
models
zoo
models.data models.schemes
anatomy compensation
analyses plan
kernels lowering
passes
training
targets
verify
bundle generation reload inspection report
session
cli
"""
SUBROOMS = ("models.data", "models.schemes")
RANK = {room: (row, place) for row, rooms in enumerate(ROWS.split("\n")) for place, room in enumerate(rooms.split())}

# What may reach further, always inside a function: (importing room, imported room) and why.
LAZILY = {
    ("operations", "compensation"): "an operation's file holds its planning and its rewriting",
    ("operations", "anatomy"): "the same",
    ("operations", "plan"): "the same",
    ("operations", "passes"): "the same",
    ("operations", "analyses"): "the same",
    ("operations", "targets"): "the same",
    ("passes", "kernels"): "a pass names the operator that it puts in",
    ("targets", "lowering"): "a site is lowered where that measured faster",
    ("bundle", "generation"): "a loaded decoder generates",
    ("bundle", "reload"): "a loaded model can be handed to the library it came from",
    ("models.schemes", "bundle"): "a saved bundle is one of the models that can be opened",
}


def imports(text: str, package: tuple[str, ...]) -> list[tuple[str, int, bool]]:
    """(module, line, inside a function) of every import of ours in a file of `package`, relative ones resolved."""
    tree = ast.parse(text)
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    typing_only = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test).endswith("TYPE_CHECKING")
        for node in ast.walk(guard)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        lazily = node in inner or node in typing_only
        found += [(name, node.lineno, lazily) for name in names if name.split(".")[0] == "surgery"]
    return found


def room_of(module: str) -> str:
    """`surgery.models.data.digits` → `models.data`; the package itself and what is no room → an empty name."""
    parts = module.split(".")[1:]
    if ".".join(parts[:2]) in SUBROOMS:
        return ".".join(parts[:2])
    return parts[0] if parts and ((PACKAGE / parts[0]).is_dir() or (PACKAGE / f"{parts[0]}.py").exists()) else ""


def edges() -> list[tuple[str, str, str, bool]]:
    """(importing room, imported room, place, inside a function) between different rooms."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = room_of(".".join(parts))
        if parts[1] in ("__init__", "__main__"):
            continue
        for module, line, lazily in imports(path.read_text(encoding="utf-8"), parts[:-1]):
            target = room_of(module)
            if target and target.split(".")[0] != room.split(".")[0]:
                found.append((room, target, f"{path.relative_to(ROOT)}:{line}", lazily))
    return found


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert rooms - {"__init__", "__main__"} <= set(RANK)


def test_imports_go_one_way():
    wrong = [
        f"{place}: {room} imports {target}" + (" inside a function" if lazily else "")
        for room, target, place, lazily in edges()
        if RANK[target] > RANK[room] and not (lazily and (room, target) in LAZILY)
    ]
    assert not wrong, "imports against the flow:\n" + "\n".join(wrong)


READ = """
import torch, surgery.plan.store
from surgery import bundle
from ..passes import runner
if TYPE_CHECKING:
    from surgery.cli import main
def late():
    from surgery.verify.size import flops
    if flops:
        import surgery.report
"""


def test_the_reader_of_imports_reads_every_form():
    found = {(room_of(module), lazily) for module, _, lazily in imports(READ, ("surgery", "anatomy"))}
    assert found == {
        ("plan", False),
        ("bundle", False),
        ("passes", False),
        ("cli", True),
        ("verify", True),
        ("report", True),
    }


@pytest.mark.parametrize("module", ["surgery", "surgery.layout", "surgery.diagnostics", "surgery.kernels"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'matplotlib', 'numpy') if name in sys.modules])"
    assert run(code) == "[]"


def test_measuring_modules_leave_the_gpu_alone():
    modules = "surgery.verify.timing, surgery.verify.memory, surgery.verify.size"
    assert run(f"import torch, {modules}; print(torch.cuda.is_initialized())") == "False"


def test_the_shelf_does_not_shadow_the_package_named_kernels(tmp_path):
    """A package `kernels` on the path wins over the folder in the working directory, which has no `__init__.py`."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("Device = 'theirs'\n")
    assert run("from kernels import Device; print(Device)", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}") == "theirs"


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
