"""The harness on kernels with seeded violations: each is caught, a sound kernel passes, a lost worker is a result."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from surgery.kernels.aot import cache, golden, table
from surgery.kernels.aot.environment import EnvironmentFailed, python_with
from surgery.kernels.aot.fingerprint import fingerprint, sources
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.aot.pool import Pool, Worker, WorkerLost
from surgery.kernels.aot.resources import Resources
from surgery.kernels.aot.rules import Entry, violations
from surgery.kernels.aot.survey import CHANGED, Row, compiled, listed, surveyed

SHELF = Path(__file__).parent / "shelf"
ARCHS = ("sm80", "sm90", "gfx942")


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Faults by architecture and label, compiled anew."""
    with pytest.MonkeyPatch.context() as patched, Pool(2) as pool:
        patched.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("cache")))
        rows = surveyed(pool, ARCHS, ["sound", "faulty"], SHELF)
        again = surveyed(pool, ARCHS, ["sound", "faulty"], SHELF)
    found = defaultdict(list)
    for row in rows:
        found[row.entry.arch, row.entry.file, row.entry.name].extend(row.faults)
    return rows, again, found


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sound_kernel_breaks_no_rule(survey, arch):
    rows = [row for row in survey[0] if row.entry.file == "sound" and row.entry.arch == arch]
    assert [row.faults for row in rows] == [()]
    assert rows[0].used.registers > 0 and rows[0].used.shared > 0
    assert rows[0].used.instructions[{"sm80": "mma", "sm90": "wgmma", "gfx942": "mfma"}[arch]] > 0


@pytest.mark.parametrize(
    ("arch", "label", "said"),
    [
        ("sm80", "spills", "spills "),
        ("sm90", "spills", "spills "),
        ("gfx942", "spills", "spills "),
        ("sm80", "shared", "shared memory, sm80 has 166912"),
        ("sm90", "shared", "shared memory, sm90 has 232448"),
        ("gfx942", "shared", "shared memory, gfx942 has 65536"),
        ("sm90", "wgmma promised", "has no wgmma"),
        ("sm90", "wgmma possible", "leaves dots of 64x32xbf16 without wgmma"),
        *[(arch, "unaligned", "names no `aligned` argument") for arch in ARCHS],
        *[(arch, "refused", "no tile is small enough") for arch in ARCHS],
        ("sm90", "absent", "no @triton.jit function"),
        ("sm90", "no such argument", "no run-time argument"),
        ("sm90", "twice", "name of another compilation"),
    ],
)
def test_a_seeded_violation_is_caught(survey, arch, label, said):
    assert [fault for fault in survey[2][arch, "faulty", label] if said in fault]


@pytest.mark.parametrize(("arch", "label"), [("sm80", "wgmma promised"), ("sm80", "wgmma possible")])
def test_a_rule_of_one_chip_holds_for_no_other(survey, arch, label):
    assert survey[2][arch, "faulty", label] == []


def test_what_did_not_change_is_not_compiled_again(survey):
    first, again, _ = survey
    assert not any(row.cached for row in first if row.entry.key)
    assert all(row.cached for row in again)
    assert [(row.used, row.faults) for row in again] == [(row.used, row.faults) for row in first]


def test_a_lost_worker_is_a_result_and_the_next_goes_on():
    with Pool(1, seconds=60) as pool:
        died = surveyed(pool, ["sm80"], ["dying"], SHELF)
        pool.seconds = 3
        hung = surveyed(pool, ["sm90"], ["dying"], SHELF)
        pool.seconds = 60
        assert pool.ask({"do": "hello"})["triton"]
    assert [row.faults for row in died] == [("the compiler's process ended with 9: it said nothing",)]
    assert [row.faults for row in hung] == [("stopped: not done after 3 s",)]


def key(folder, **change):
    sizes = {"kernel": "one:f", "signature": {"x": "*fp32"}, "constexprs": {}, "num_warps": 4, "num_stages": 2}
    sources.cache_clear()
    return fingerprint(Compilation(**{**sizes, **change}), "sm90", "3.9.0", folder)


def test_a_key_changes_with_all_that_matters_and_nothing_else(tmp_path):
    (tmp_path / "one.py").write_text("from surgery.kernels.triton._shared import g\n")
    (tmp_path / "_shared.py").write_text("from surgery.kernels.triton import _deep\n")
    (tmp_path / "_deep.py").write_text("A = 1\n")
    (tmp_path / "other.py").write_text("B = 1\n")
    before = key(tmp_path)
    assert key(tmp_path, label="another", expects={"sm90": ("wgmma",)}) == before
    changes = [{"num_warps": 8}, {"num_stages": 3}, {"constexprs": {"A": 1}}, {"options": {"maxnreg": 64}}]
    changes += [{"signature": {"x": "*bf16"}}, {"aligned": ("x",)}]
    assert len({before, *(key(tmp_path, **change) for change in changes)}) == 1 + len(changes)
    (tmp_path / "other.py").write_text("B = 2\n")
    assert key(tmp_path) == before
    (tmp_path / "_deep.py").write_text("A = 2\n")
    assert key(tmp_path) != before


def test_a_file_that_changes_meanwhile_is_not_recorded_under_its_old_key(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sound.py").write_text((SHELF / "sound.py").read_text())
    with Pool(1) as pool:
        (entry,) = listed(pool, ["sm90"], ["sound"], tmp_path)
    (tmp_path / "sound.py").write_text((SHELF / "sound.py").read_text().replace("tile(64, 64, 32", "tile(64, 64, 16"))
    with Pool(1) as pool:
        ((_, used),) = compiled(pool, [entry], tmp_path)
    assert used.error == CHANGED and cache.find(entry.key) is None


def test_leaving_early_does_not_wait_for_what_is_at_work():
    with pytest.raises(KeyboardInterrupt), Pool(1, seconds=600) as pool:
        pool.ask({"do": "hello"})
        pool.threads.submit(pool.ask, {"do": "list", "shelf": str(SHELF), "file": "dying", "arch": "sm90"})
        begun = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 60


def test_a_file_that_does_not_load_is_a_fault_of_that_file(tmp_path):
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    (tmp_path / "empty.py").write_text("")
    with Pool(1) as pool:
        broken, empty = surveyed(pool, ["sm90"], shelf=tmp_path)
    assert "No module named 'nowhere_at_all'" in broken.faults[0]
    assert "no compilations(arch)" in empty.faults[0]


def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(WorkerLost, match="process ended with 1"):
        Worker("/bin/false").ask({"do": "hello"}, 30)


def test_the_command_fails_on_a_violation_and_lists_it(tmp_path):
    command = [sys.executable, "-m", "surgery.kernels.aot", "--shelf", str(SHELF), "--jobs", "1", "--arch", "sm90"]
    environment = {**os.environ, "SURGERY_CACHE": str(tmp_path)}
    run = subprocess.run([*command, "--kernel", "sound", "--json"], capture_output=True, text=True, env=environment)
    said = json.loads(run.stdout)
    assert (run.returncode, said["format"], said["violations"], len(said["rows"])) == (0, "surgery.aot/1", [], 1)
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    command[4] = str(tmp_path)
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 1
    assert "broken.py: sm90" in run.stderr and "nowhere_at_all" in run.stderr


def test_stack_without_spills_is_a_violation():
    entry = Entry("file", 0, "sm90", "file:kernel", "label", "key", (), 1)
    assert violations(entry, Resources(stack_bytes=16)) == ["keeps 16 bytes a thread in local memory"]


def row(name, registers, spilled, shared):
    return Row(
        Entry("file", 0, "sm90", "file:kernel", name, name, (), 1),
        Resources(registers, spilled, 0, 0, shared),
        False,
        (),
    )


def test_the_record_holds_shared_memory_exactly_and_registers_within_a_step(tmp_path):
    path = tmp_path / "resources.json"
    golden.write([row("a", 100, 0, 1024), row("b", 90, 0, 0)], "3.9.0", path)
    record = golden.read(path)
    assert record["triton"] == "3.9.0"
    assert golden.differences([row("a", 116, 0, 1024), row("b", 40, 0, 0)], record, whole=True) == []
    said = golden.differences([row("a", 117, 0, 1024), row("b", 90, 0, 16), row("c", 1, 0, 0)], record, whole=True)
    assert [line.partition("] ")[0].partition(": ")[2] or line.rpartition(": ")[2] for line in said] == [
        "registers 117, recorded 100",
        "shared memory 16, recorded 0",
        "not recorded",
    ]
    assert golden.differences([row("a", 100, 0, 1024)], record, whole=False) == []
    assert "ships no more" in golden.differences([row("a", 100, 0, 1024)], record, whole=True)[0]


def test_the_summary_counts():
    assert table.summary([row("a", 100, 0, 1024), row("b", 90, 8, 0)]) == [
        "sm90: 2 of 2 compiled (2 now), 1 kernels, 1 spill, at most 100 registers, 1024 bytes of shared memory, "
        "0 with violations"
    ]


def test_a_damaged_record_of_the_cache_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    cache.keep("abcd", Resources(registers=7))
    assert cache.find("abcd") == Resources(registers=7)
    next(tmp_path.rglob("abcd.json")).write_text("{")
    assert cache.find("abcd") is None


def test_only_a_version_is_installed():
    with pytest.raises(EnvironmentFailed, match="no version"):
        python_with("3.6.0 --index-url elsewhere")


def test_nearest_to_the_limits_of_each_kernel():
    used = {
        "sm80 a:x [one]": [100, 0, 10],
        "sm80 a:x [two]": [90, 0, 20],
        "sm80 a:x [three]": [80, 0, 5],
        "sm90 a:x [one]": [100, 0, 10],
    }
    assert golden.nearest({"used": used}) == set(used) - {"sm80 a:x [three]"}
