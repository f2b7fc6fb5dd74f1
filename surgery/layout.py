"""Where the top-level shelves (`grammar/`, `specs/`, `kernels/`) live.

In a wheel they sit inside the package; in an editable install or a bare checkout they sit beside it.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE if (PACKAGE / "grammar").is_dir() else PACKAGE.parent


def shelf(name: str) -> Path:
    """The folder of a top-level shelf, e.g. `shelf("grammar")`."""
    return HOME / name
