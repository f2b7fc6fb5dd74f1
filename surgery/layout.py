"""Where the top-level shelves (`grammar/`, `specs/`, `kernels/`) live.

In a wheel they sit inside the package; in an editable install or a bare checkout they sit beside it. And where what was
compiled or measured on this machine is kept.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE if (PACKAGE / "grammar").is_dir() else PACKAGE.parent


def shelf(name: str) -> Path:
    """The folder of a top-level shelf, e.g. `shelf("grammar")`."""
    return HOME / name


def cache(name: str) -> Path:
    """`$SURGERY_CACHE/NAME`, else `$XDG_CACHE_HOME/surgery/NAME`, else `~/.cache/surgery/NAME`; not made here."""
    base = os.environ.get("SURGERY_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "surgery")
    return Path(base).expanduser() / name
