"""Measured resources kept on disk under the hash of all that they depend on: an unchanged kernel is not compiled again.

`$SURGERY_CACHE/aot`, else `$XDG_CACHE_HOME/surgery/aot`, else `~/.cache/surgery/aot`.
"""

import json
from pathlib import Path

from surgery.kernels.aot.resources import Resources

from surgery.atomic import write_text
from surgery.layout import cache


def folder() -> Path:
    return cache("aot")


def find(key: str) -> Resources | None:
    """What is kept, or None; a file that cannot be read counts as none."""
    try:
        return Resources.from_json(json.loads(_path(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(key: str, used: Resources) -> None:
    """Keep it, whole or not at all."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(used.to_json()))


def _path(key: str) -> Path:
    return folder() / "records" / key[:2] / f"{key}.json"
