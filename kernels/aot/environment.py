"""Another version of Triton beside the installed one: a small virtual environment, made once and kept.

Only Triton and NumPy are installed into it; torch and this package are found where they are now, through a `.pth` file,
which comes after the environment's own folder on the path, so that its Triton wins.
"""

import fcntl
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from surgery.kernels.aot import cache

from surgery.layout import PACKAGE

# Triton before 3.7 cannot interpret `range(lo, hi)` over loaded bounds with a newer one.
NUMPY = "numpy<2.4"
VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.?[a-z0-9]+)?")


class EnvironmentFailed(RuntimeError):
    """The version could not be installed; the message has pip's last lines."""


def python_with(version: str) -> str:
    """The interpreter of an environment with that Triton, made if there is none yet."""
    if not VERSION.fullmatch(version):
        raise EnvironmentFailed(f"`{version}` is no version of Triton: write it as 3.6.0")
    home = cache.folder() / f"triton-{version}-py{sys.version_info[0]}.{sys.version_info[1]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            _make(home, version)
        _point_here(home)
    return str(home / "bin" / "python")


def _make(home: Path, version: str) -> None:
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)])
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, f"triton=={version}", NUMPY])
    (home / "ready").touch()


def _point_here(home: Path) -> None:
    """Written anew each time: the package may have been installed elsewhere since."""
    torch = Path(importlib.util.find_spec("torch").origin).parents[1]
    own = next(home.glob("lib/python*/site-packages"))
    (own / "surgery-beside.pth").write_text(f"{PACKAGE.parent}\n{torch}\n", encoding="utf-8")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise EnvironmentFailed(f"{' '.join(command[1:4])} failed:\n{last}")
