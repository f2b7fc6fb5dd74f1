"""Ctrl-C and kill -9 of a real `surgery apply`: the documented exit code, no traceback, nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import surgery
from surgery.cli import main

ROOT, MODELS = Path(surgery.__file__).parents[1], Path(__file__).parents[1] / "session"
QUICK = ["--model", "tiny_model:make", "--no-timing", "--no-controls"]
STOP_IN_MID_WRITE = """
import os, signal, sys, time
import surgery.bundle.save
name = sys.argv.pop(1)
def stop(folder, manifest):
    assert (folder / "model.safetensors").stat().st_size > 0
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(60)
sys.modules["surgery.bundle.save"].write_manifest = stop
from surgery.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{MODELS}")
    (tmp_path / "my.surgery").write_text("prune tail 50% of class embeddings\n")
    return tmp_path


def names(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != "__pycache__")


def stopped_in_mid_write(name, *options):
    command = [sys.executable, "-c", STOP_IN_MID_WRITE, name, "apply", "my.surgery", *QUICK, "--out", "out", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_ctrl_c_while_measuring(folder):
    """Stopped when the graph is rewritten and the minutes of sampling have begun."""
    (folder / "long.surgery").write_text(
        "model zoo:digits-dit\ndata digits samples=20000\nprune tail 50% of class embeddings by magnitude\n"
    )
    command = [sys.executable, "-m", "surgery", "apply", "long.surgery", "--print-after", "prune", "--out", "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("# after prune"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == "" and err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    assert names(folder) == ["long.surgery", "my.surgery"]


def test_ctrl_c_in_mid_write(folder):
    done = stopped_in_mid_write("SIGINT")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert names(folder) == ["my.surgery"]


def test_kill_in_mid_write(folder, capsys):
    done = stopped_in_mid_write("SIGKILL")
    assert done.returncode == -signal.SIGKILL
    left = set(names(folder)) - {"my.surgery"}
    assert len(left) == 1 and left.pop().startswith(".out.writing-")
    assert main(["apply", "my.surgery", *QUICK, "--out", "out", "-q"]) == 0
    assert names(folder) == ["my.surgery", "out"], "the next run clears what a killed one left"
    assert surgery.load("out").modulation.weight.shape == (32, 4)


def test_kill_while_overwriting_keeps_the_old_bundle(folder, capsys):
    assert main(["apply", "my.surgery", *QUICK, "--out", "out", "-q"]) == 0
    before = {file.name: file.read_bytes() for file in (folder / "out").iterdir()}
    done = stopped_in_mid_write("SIGKILL", "--overwrite")
    assert done.returncode == -signal.SIGKILL
    assert {file.name: file.read_bytes() for file in (folder / "out").iterdir()} == before
