"""A bundle's folder is as it was before, or wholly new, however a run ends."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from bundle_cases import contents

from surgery.bundle import folder as folders
from surgery.bundle import load, save
from surgery.bundle.folder import written_whole
from surgery.diagnostics import BundleError

save_module = sys.modules["surgery.bundle.save"]


def fault(action, *words):
    with pytest.raises(BundleError) as caught:
        action()
    found = caught.value.diagnostics[0]
    assert found.help and all(word in found.message for word in words)
    return found.code


def test_an_existing_folder_is_refused(transformer, tmp_path):
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    before = contents(target)
    assert fault(lambda: save(target, transformer, manifest={"run": 2}), "exists") == "S701"
    assert contents(target) == before and os.listdir(tmp_path) == ["b"]


def test_overwriting_replaces_all_of_it(transformer, tmp_path):
    target = save(tmp_path / "b", transformer, manifest={"run": 1}, extra={"old.txt": b"x"})
    before = contents(target)
    save(target, transformer, manifest={"run": 2}, overwrite=True)
    assert b'"run": 2' in contents(target)["surgery.json"] and "old.txt" not in contents(target)
    assert os.listdir(tmp_path) == ["b"] and before != contents(target)


def test_overwriting_without_an_exchange(transformer, tmp_path, monkeypatch):
    """As on a system that cannot swap two folders in one step."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    save(target, transformer, manifest={"run": 2}, overwrite=True)
    assert b'"run": 2' in contents(target)["surgery.json"] and os.listdir(tmp_path) == ["b"]


def test_only_a_bundle_is_overwritten(transformer, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "me.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert fault(lambda: save(photos, transformer, manifest={}, overwrite=True), "not a bundle") == "S701"
    assert fault(lambda: save(tmp_path / "file", transformer, manifest={}, overwrite=True), "not a folder") == "S701"
    assert (photos / "me.jpg").exists()
    target = save(tmp_path / "empty", transformer, manifest={}, overwrite=True)
    (target / "notes.txt").write_text("mine")
    assert fault(lambda: save(target, transformer, manifest={}, overwrite=True), "notes.txt") == "S701"
    (target / "surgery.json").write_text("{")
    (target / "notes.txt").unlink()
    save(target, transformer, manifest={}, overwrite=True)
    assert load(target)


def test_a_link_is_followed(transformer, tmp_path):
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    (tmp_path / "latest").symlink_to(target)
    assert save(tmp_path / "latest", transformer, manifest={"run": 2}, overwrite=True) == target
    assert (tmp_path / "latest").is_symlink() and b'"run": 2' in contents(target)["surgery.json"]


STOPS = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), "S702"),
    "input-output error": (OSError(errno.EIO, "Input/output error"), "S702"),
    "Ctrl-C": (KeyboardInterrupt(), None),
}


@pytest.mark.parametrize("stage", ["write_tensors", "write_manifest"])
@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_stops_midway_leaves_all_as_it_was(transformer, tmp_path, monkeypatch, name, stage):
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    before = contents(target)
    stop, code = STOPS[name]

    def halt(staging, *_):
        (staging / "half").write_bytes(b"x")
        raise stop

    monkeypatch.setattr(save_module, stage, halt)
    for folder, overwrite in ((target, True), (tmp_path / "new", False)):
        if code:
            action = lambda f=folder, o=overwrite: save(f, transformer, manifest={}, overwrite=o)
            assert fault(action, str(folder), stop.strerror) == code
        else:
            with pytest.raises(KeyboardInterrupt):
                save(folder, transformer, manifest={}, overwrite=overwrite)
    assert contents(target) == before and os.listdir(tmp_path) == ["b"]


def test_a_write_the_system_cuts_short(transformer, tmp_path):
    """A real limit on file size, met in the middle of the tensors, as a full disk would be."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        code = fault(lambda: save(tmp_path / "b", transformer, manifest={}), "cannot write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == "S702" and not os.listdir(tmp_path)


def test_a_place_that_cannot_hold_a_folder(transformer, tmp_path):
    (tmp_path / "file").write_text("x")
    assert fault(lambda: save(tmp_path / "file" / "b", transformer, manifest={}), "cannot write") == "S702"
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert fault(lambda: save(tmp_path / "closed" / "b", transformer, manifest={}), "Permission") == "S702"


def test_parents_are_made_and_modes_are_the_users(transformer, tmp_path):
    target = save(tmp_path / "a" / "b" / "c", transformer, manifest={})
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o666 & ~mask}


KILLED = """
import sys, time
from surgery.bundle import load, save, weights
def slow(path, shard):
    path.write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)
weights._write_shard = slow
save(sys.argv[2], load(sys.argv[1]), manifest={}, overwrite=True)
"""


def test_killed_in_mid_write(saved, transformer, tmp_path):
    """kill -9 while the tensors are being written: the old bundle stands, and the next run clears the remains."""
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    before = contents(target)
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(saved), str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "writing\n"
        assert len(os.listdir(tmp_path)) == 2
        with written_whole(tmp_path / "b", overwrite=True) as staging:  # a second run leaves the living one alone
            assert len(os.listdir(tmp_path)) == 3
            (staging / "surgery.json").write_bytes(before["surgery.json"])
            for name, content in before.items():
                (staging / name).write_bytes(content)
        assert len(os.listdir(tmp_path)) == 2
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    assert contents(target) == before and len(os.listdir(tmp_path)) == 2
    save(target, transformer, manifest={"run": 2}, overwrite=True)
    assert os.listdir(tmp_path) == ["b"]


def _dead_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_killed_between_two_renames(transformer, tmp_path):
    """Where a swap takes two renames, the old bundle comes back at the next load or save."""
    target = save(tmp_path / "b", transformer, manifest={"run": 1})
    before = contents(target)
    target.rename(tmp_path / f".b.replaced-{_dead_process()}-")
    (tmp_path / f".b.writing-{_dead_process()}-x").mkdir()
    assert load(target) and contents(target) == before
    target.rename(tmp_path / f".b.replaced-{_dead_process()}-")
    assert fault(lambda: save(target, transformer, manifest={}), "exists") == "S701"
    save(target, transformer, manifest={"run": 2}, overwrite=True)
    assert os.listdir(tmp_path) == ["b"]


def test_no_moment_without_a_bundle(transformer, tmp_path):
    """While one process overwrites again and again, another always finds a whole bundle."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not folders._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("needs a system that exchanges two folders in one step")
    target = save(tmp_path / "b", transformer, manifest={"run": 0})
    watch = "import os, sys\nwhile True:\n    os.stat(sys.argv[1])\n"
    watcher = subprocess.Popen([sys.executable, "-c", watch, str(target / "surgery.json")], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with written_whole(target, overwrite=True) as staging:
                for name in ("surgery.json", "graph.json"):
                    (staging / name).write_bytes((target / name).read_bytes())
        assert watcher.poll() is None
    finally:
        watcher.kill()
        watcher.communicate()
