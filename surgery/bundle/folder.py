"""Write a folder whole or not at all: into a hidden sibling first, then one rename."""

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgery.bundle.faults import EXISTS
from surgery.bundle.files import MANIFEST, belongs
from surgery.diagnostics import BundleError

if sys.platform != "win32":
    import fcntl

PROCESS = re.compile(r"\.(?:writing|replaced)-(\d+)-[^-]*$")
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def written_whole(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes `folder` when the block ends without an exception.

    However the block ends, or the process dies, `folder` is then either as it was before or wholly new.
    """
    restore(folder)
    refuse_existing(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-{os.getpid()}-", dir=folder.parent))
    lock = _lock(staging)
    try:
        yield staging
        _settle(staging)
        _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def restore(folder: Path) -> None:
    """Put a bundle back that a run was replacing when it was killed between two renames."""
    if folder.exists():
        return
    for aside in sorted(folder.parent.glob(f".{_literal(folder.name)}.replaced-*")):
        try:
            os.rename(aside, folder)
        except OSError:  # read-only, or another process was quicker: the caller then finds what there is
            continue
        return


def refuse_existing(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise BundleError(
            f"`{folder}` exists",
            code=EXISTS,
            help="choose another folder, or replace it with `--overwrite` (in Python `overwrite=True`)",
        )
    if not folder.is_dir():
        raise BundleError(f"`{folder}` is not a folder", code=EXISTS, help="choose another place for the bundle")
    present = [entry.name for entry in os.scandir(folder)]
    if present and MANIFEST not in present:
        raise BundleError(
            f"`{folder}` is not a bundle, so it is not overwritten",
            code=EXISTS,
            help="choose another folder, or empty this one",
        )
    foreign = [name for name in sorted(present) if not belongs(folder, name)]
    if foreign:
        raise BundleError(
            f"`{folder}` also holds what is not the bundle's: {', '.join(foreign[:5])}",
            code=EXISTS,
            help="move it elsewhere, or choose another folder",
        )


def _literal(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _lock(folder: Path) -> int | None:
    """Held while a run writes, and let go by the system however the run ends."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _clean(folder: Path) -> None:
    """Remove what killed runs left beside the folder; leave what a living run is writing."""
    for kind in ("writing", "replaced"):
        for left in folder.parent.glob(f".{_literal(folder.name)}.{kind}-*"):
            if _alive(left.name):
                continue
            lock = _lock(left) if left.is_dir() else None
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def _alive(name: str) -> bool:
    """Whether the process that wrote here still runs; its number is in the folder's name."""
    found = PROCESS.search(name)
    if not found:
        return False
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _settle(staging: Path) -> None:
    """On the disk before it is seen: after a power cut a renamed folder must not hold empty files."""
    mask = os.umask(0)
    os.umask(mask)
    for file in staging.iterdir():
        file.chmod(0o666 & ~mask)
        _synchronize(file)
    staging.chmod(0o777 & ~mask)
    _synchronize(staging)


def _synchronize(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(staging: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staging, folder)
    elif not _exchange(staging, folder):
        aside = folder.with_name(f".{folder.name}.replaced-{os.getpid()}-")
        os.rename(folder, aside)
        try:
            os.rename(staging, folder)
        except BaseException:
            os.rename(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _synchronize(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux); False where it cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(problem, os.strerror(problem), str(other))
