"""A model's own tokenizer, made of the files it came with."""

import json
import tempfile
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError
from surgery.models.huggingface.folder import not_installed
from surgery.models.loaded import LoadedModel

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", ".model")
"""How the names of files end that hold a vocabulary: without one a tokenizer knows no word."""


def tokenizer_of(model: LoadedModel) -> Any:
    """transformers' tokenizer of the model's files; no code of theirs is run.

    Errors: S212 where it has none or they cannot be read, S206 where transformers is not installed.
    """
    files = model.source.get("tokenizer_files") or {}
    if not any(name.endswith(VOCABULARIES) for name in files):
        raise SurgeryError(
            f"{model.reference} has no tokenizer to read text with",
            code="S212",
            help='save it with the model, `tokenizer.save_pretrained(folder)`; or write `data tensors:"file.safetensors"`',
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise not_installed(error) from error
    from surgery.models.huggingface.weights import quiet

    with tempfile.TemporaryDirectory() as folder, quiet():
        _write(Path(folder), files, model.source.get("config") or {})
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a tokenizer's files are checked by many hands, each with errors of its own
            raise _unreadable(error, model) from error


def _write(folder: Path, files: Any, config: Any) -> None:
    for name, content in files.items():
        (folder / Path(name).name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _unreadable(error: Exception, model: LoadedModel) -> SurgeryError:
    return SurgeryError(
        f"the tokenizer of {model.reference} cannot be read: {type(error).__name__}: {str(error)[:300]}",
        code="S212",
        notes=(f"its files: {', '.join(sorted(model.source['tokenizer_files']))}",),
        help="save it again with `tokenizer.save_pretrained(folder)`; one that brings code is not read",
    )
