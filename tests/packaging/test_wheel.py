"""The wheel holds the shelves, works from anywhere, and is the same whether built from the tree or from the sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info", "tests")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the checkout, so that a build leaves nothing behind and sees no half-saved file twice."""
    copy = tmp_path_factory.mktemp("checkout") / "surgery"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / "tests").mkdir()
    return copy


def build(tree: Path, kind: str, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_the_shelves(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    places = {
        "surgery": "surgery",
        "grammar": "surgery/grammar",
        "specs": "surgery/specs",
        "kernels": "surgery/kernels",
    }
    for folder, place in places.items():
        files = {path for path in (tree / folder).rglob("*") if path.is_file() and path.name != ".gitkeep"}
        missing = {f"{place}/{path.relative_to(tree / folder).as_posix()}" for path in files} - packed
        assert not missing
    assert {"surgery/py.typed", "surgery/grammar/surgery.lark", "surgery/kernels/__init__.py"} <= packed
    for name, ending in {"report/templates": ".html", "zoo": ".safetensors", "diagnostics/codes": ".md"}.items():
        assert any(entry.startswith(f"surgery/{name}") and ending in entry for entry in packed), name


def test_the_wheel_holds_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        roots = {entry.split("/")[0] for entry in archive.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"surgery"}


def test_the_wheel_declares_its_commands_and_types(unpacked):
    (info,) = unpacked.glob("model_surgery-*.dist-info")
    points = (info / "entry_points.txt").read_text()
    assert "surgery = surgery.cli:main" in points and "[surgery.operations]" in points
    metadata = (info / "METADATA").read_text()
    assert "Classifier: Typing :: Typed" in metadata and "License-Expression: Apache-2.0" in metadata
    of_tests = {line.split(";")[0] for line in metadata.splitlines() if line.endswith("extra == 'test'")}
    assert {"Requires-Dist: transformers>=5", "Requires-Dist: diffusers>=0.36", "Requires-Dist: pytest>=8"} <= of_tests


def test_the_unpacked_wheel_works_from_anywhere(unpacked, tmp_path):
    home = unpacked / "surgery"
    code = "from surgery.layout import shelf; print(*(shelf(name) for name in ('grammar', 'specs', 'kernels')))"
    assert run(["-c", code], unpacked, tmp_path).split() == [
        str(home / name) for name in ("grammar", "specs", "kernels")
    ]
    assert "commands" in run(["-m", "surgery", "--help"], unpacked, tmp_path)
    code = "import surgery.kernels; print(surgery.kernels.__file__, *surgery.kernels.__path__)"
    assert run(["-c", code], unpacked, tmp_path).split() == [str(home / "kernels/__init__.py"), str(home / "kernels")]


def test_the_unpacked_wheel_reads_a_spec(unpacked, tmp_path):
    spec = tmp_path / "one.surgery"
    spec.write_text("model zoo:digits-dit\nprune tail 66% of class embeddings\n")
    run(["-m", "surgery", "check", "one.surgery"], unpacked, tmp_path)


WITHOUT_METADATA = """
import importlib.metadata as metadata, runpy, sys
def absent(name):
    raise metadata.PackageNotFoundError(name)
metadata.version, metadata.entry_points = absent, lambda **group: ()
sys.argv[0] = "surgery"
runpy.run_module("surgery", run_name="__main__")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["check", "one.surgery"], ["explain", "require"]])
def test_a_bare_checkout_works(tree, tmp_path, arguments):
    (tmp_path / "one.surgery").write_text("model zoo:digits-dit\nprune tail 66% of class embeddings\n")
    assert run(["-c", WITHOUT_METADATA, *arguments], tree, tmp_path)


def test_a_bare_checkout_finds_its_shelves(tree, tmp_path):
    code = "from surgery.layout import shelf; print(shelf('grammar'))"
    assert run(["-c", code], tree, tmp_path).strip() == str(tree / "grammar")


def test_the_wheel_from_the_sdist_is_the_same(tree, wheel, tmp_path):
    sdist = build(tree, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = build(source, "wheel", tmp_path / "again")
    assert contents(again) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    """Name → checksum of every entry of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def run(arguments: list[str], path: Path, cwd: Path) -> str:
    """What Python prints with `path` alone before the site's packages; a folder elsewhere is the working directory."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
