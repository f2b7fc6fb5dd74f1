"""The folder a reference names: on this disk, or fetched from the Hugging Face hub because its id was written."""

import json
import re
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?")
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched without weights: configurations and tokenizers."""
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)
"""What belongs to a model beside its weights and its config: how its inputs are made, how it generates."""


def located(location: str, *, weights: bool) -> Path:
    """The folder at `location`, or of the hub model `org/name` (also `org/name@revision`).

    Without `weights` only small files are fetched from the hub. Pickles and code never are.
    Errors: S201 where neither is there, S206 where huggingface_hub is not installed.
    """
    folder = Path(location.strip("\"'")).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise SurgeryError(f"`hf:{location}` is a file", code="S201", help="give the folder it lies in")
    if not HUB_ID.fullmatch(str(location)) or location.startswith("."):
        raise SurgeryError(
            f"no model at `hf:{location}`: there is no such folder",
            code="S201",
            help="give a folder written by `save_pretrained`, or a hub id such as `hf:org/name`",
        )
    return _fetched(location, weights)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Errors: S201 missing, S209 not a JSON object, or not of transformers."""
    path = folder / "config.json"
    if not path.is_file():
        raise SurgeryError(
            f"`{folder}` is not a model that transformers saved: it has no config.json",
            code="S201",
            help=_meant(folder),
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SurgeryError(f"`{path}` is not JSON: {error}", code="S209", help="save the model again") from error
    if not isinstance(config, dict):
        raise SurgeryError(f"`{path}` is not a JSON object", code="S209", help="save the model again")
    if "_class_name" in config:
        raise SurgeryError(
            f"`{folder}` holds a {config['_class_name']} of diffusers",
            code="S209",
            help=f"write `diffusers:{folder}`",
        )
    return config


def files_beside(folder: Path) -> dict[str, bytes]:
    """The tokenizer's, image processor's and generation's files, by name."""
    return {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}


def _fetched(location: str, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise not_installed(error) from error
    name, _, revision = location.partition("@")
    wanted = [*SMALL, "*.safetensors"] if weights else list(SMALL)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub's own errors, the network's and the disk's have no common base
        raise SurgeryError(
            f"no model at `hf:{location}`: there is no such folder, and the hub did not give it",
            code="S201",
            notes=(f"{type(error).__name__}: {_first_line(error)}",),
            help="check the name and the network; a gated model needs `hf auth login`; a folder is given as "
            f"`hf:./{name.rpartition('/')[2]}`",
        ) from error


def not_installed(error: ImportError) -> SurgeryError:
    return SurgeryError(
        f"reading `hf:` models needs transformers: {error}",
        code="S206",
        help="pip install 'model-surgery[hf]'",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "without a message"


def _meant(folder: Path) -> str:
    if (folder / "surgery.json").is_file():
        return f"it is a bundle: write `{folder}`"
    if (folder / "model_index.json").is_file():
        return f"it is a pipeline of diffusers: write `diffusers:{folder}`"
    return "give a folder written by `save_pretrained`"
