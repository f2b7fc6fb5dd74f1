"""JSON files of a bundle, read strictly: bounded in size and depth, no repeated keys, a known format."""

import json
from typing import Any

from surgery.bundle.faults import VERSION, malformed
from surgery.diagnostics import BundleError

BYTES = 64 * 2**20


def read_document(content: bytes, place: str, format: str) -> dict[str, Any]:
    """The object a JSON file holds. Raises BundleError, naming the file, for anything else."""
    if len(content) > BYTES:
        raise malformed(place, f"larger than {BYTES >> 20} MiB", "no model's graph is: do not trust this bundle")
    try:
        document = json.loads(content, object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError as error:
        raise malformed(place, "nested too deeply", "no model's graph is: do not trust this bundle") from error
    except ValueError as error:
        raise malformed(place, f"not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise malformed(place, "not a JSON object")
    found = document.get("format")
    if found == format:
        return document
    if isinstance(found, str) and found.partition("/")[0] == format.partition("/")[0]:
        raise BundleError(
            f"{place}: format {found[:60]}, and this version of surgery reads {format}",
            code=VERSION,
            help="install a newer `model-surgery`",
        )
    raise malformed(place, f"its format is not {format}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
