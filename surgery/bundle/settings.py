"""What a bundle's config.json says of generation: with which tokens text begins, ends and is padded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.bundle.files import read_bytes

FILES = ("config.json", "generation_config.json")
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def read_settings(folder: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    """Token identifiers by name, whole numbers or lists of them; the later file wins. What is not such is left out."""
    found: dict[str, Any] = {}
    for name in FILES:
        if name not in files:
            continue
        try:
            document = json.loads(read_bytes(folder, name))
        except (ValueError, RecursionError):  # a stranger's file; it only holds defaults, which a caller can give
            continue
        values = {key: document.get(key) for key in KEYS} if isinstance(document, dict) else {}
        found |= {key: value for key, value in values.items() if _is_token(value)}
    return found


def _is_token(value: Any) -> bool:
    tokens = value if isinstance(value, list) else [value]
    return bool(tokens) and all(type(token) is int for token in tokens)
