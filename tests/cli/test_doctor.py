"""`surgery doctor`: what is well, what is missing, what is broken, and the exit code."""

import json
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from surgery.cli import health, main
from surgery.cli.health import Check

ROOT = Path(__file__).resolve().parents[2]


def states(checks):
    return {check.name: check.state for check in checks}


def test_what_is_required_is_what_the_package_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {entry.split(">")[0] for entry in declared["dependencies"] if "sys_platform" not in entry}
    assert names == set(health.REQUIRED)
    assert {extra for extra, _ in health.EXTRAS.values()} <= set(declared["optional-dependencies"])
    assert any(f"torch>={'.'.join(map(str, health.OLDEST_TORCH))}" == entry for entry in declared["dependencies"])


def test_the_document_names_every_part(capsys):
    code = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "surgery.doctor/1"
    found = {check["name"]: check for check in document["checks"]}
    parts = {"python", "surgery", "torch", "device", "threads", "c++ compiler", "grammar/", "specs/", "kernels/"}
    assert parts | {"operation require", "working directory", "diffusers"} <= set(found)
    assert found["operation require"]["found"] == "surgery.operations.require:Require"
    broken = [check for check in document["checks"] if check["state"] == "broken"]
    assert document["healthy"] is (not broken) and code == (1 if broken else 0)


CHECKS = [
    Check("a", "ok", "fine"),
    Check("b", "warning", "absent", "pip install b"),
    Check("c", "broken", "bad", "mend"),
]


@pytest.mark.parametrize(("given", "code"), [(CHECKS[:1], 0), (CHECKS[:2], 0), (CHECKS, 1)])
def test_only_what_is_broken_fails(monkeypatch, capsys, given, code):
    monkeypatch.setattr(health, "examine", lambda compile_something: given)
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert out.count("help: ") == len(given) - 1


def test_quiet_leaves_out_what_is_well(monkeypatch, capsys):
    monkeypatch.setattr(health, "examine", lambda compile_something: CHECKS)
    main(["doctor", "--quiet"])
    out = capsys.readouterr().out
    assert "fine" not in out and "absent" in out and "bad" in out


def test_a_missing_package_and_an_old_torch_are_broken(monkeypatch):
    versions = {"torch": "2.9.1+cu128", "lark": None}
    monkeypatch.setattr(health, "installed", lambda name: versions.get(name, "9.9"))
    found = {check.name: check for check in health.packages()}
    assert found["torch"].state == "broken" and "too old" in found["torch"].found
    assert found["lark"] == Check("lark", "broken", "not installed", "pip install lark")
    assert found["rich"].state == "ok"


def test_a_missing_extra_is_a_warning_with_its_cure(monkeypatch):
    monkeypatch.setattr(health, "installed", lambda name: None)
    assert {check.state for check in health.extras()} == {"warning"}
    assert "pip install 'model-surgery[diffusion]'" in [check.cure for check in health.extras()]


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (only,) = health.devices()
    assert only.state == "broken" and only.found.startswith("torch cannot be imported")


def test_no_compiler_is_a_warning(monkeypatch):
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert health.cxx().state == "warning"


def test_a_missing_shelf_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("surgery.layout.HOME", tmp_path)
    assert set(states(health.shelves()).values()) == {"broken"}


def test_a_plugin_that_cannot_be_loaded_is_told(monkeypatch):
    from surgery.operations import registry

    bad = EntryPoint(name="theirs", value="no_such_package_anywhere", group=registry.GROUP)
    monkeypatch.setattr(registry, "points", lambda: (bad,))
    found = list(health.operations())
    assert found[-1].state == "broken" and "theirs" in found[-1].found and found[-1].cure


def test_kernels_of_others_are_listed_with_their_owner(monkeypatch):
    point = EntryPoint(name="edges", value="theirs.kernels", group="surgery.kernels")
    monkeypatch.setattr(health, "entry_points", lambda group: [point] if group == "surgery.kernels" else [])
    assert list(health.kernels()) == [Check("kernel edges", "ok", "theirs.kernels")]


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(health.tempfile, "TemporaryFile", refuse)
    (only,) = health.here()
    assert only.state == "warning" and only.found.endswith("permission denied")


@pytest.mark.parametrize(("text", "numbers"), [("2.13.0+cpu", (2, 13)), ("2.11.0a0", (2, 11)), ("10.1", (10, 1))])
def test_release(text, numbers):
    assert health.release(text) == numbers
