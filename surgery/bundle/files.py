"""The files of a bundle: their names, their hashes, and `surgery.json` ("surgery.bundle/1"), which lists them."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from surgery.bundle.document import BYTES, read_document
from surgery.bundle.faults import CHANGED, FILE_NAME, MISSING, malformed
from surgery.bundle.faults import MANIFEST as UNWRITABLE_MANIFEST
from surgery.diagnostics import BundleError

FORMAT = "surgery.bundle/1"
MANIFEST = "surgery.json"
GRAPH = "graph.json"
SPEC, REPORT, PAGE = "spec.surgery", "report.json", "report.html"
OWN_KEYS = ("format", "versions", "files")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
OWN = re.compile(r"model(-\d+-of-\d+)?\.(safetensors|pt2)(\.index\.json)?")
RESERVED = frozenset({MANIFEST, GRAPH, SPEC, REPORT, PAGE})
HASH = re.compile(r"[0-9a-f]{64}")
AGAIN = "copy or download the bundle again, or write it again with `surgery apply`"


def check_name(name: str) -> None:
    """Raises BundleError for anything but a plain file name: no folders, no `..`, nothing hidden."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise BundleError(
            f"`{str(name)[:100]}` cannot be the name of a file in a bundle",
            code=FILE_NAME,
            help="use a plain file name of letters, digits, `.`, `_`, `+` and `-`, without folders",
        )


def check_extra(names: Iterable[str]) -> None:
    """Raises BundleError where files brought by the caller have bad names or those of the bundle's own files."""
    seen = {name.lower() for name in RESERVED}
    for name in names:
        check_name(name)
        if name.lower() in seen or OWN.fullmatch(name.lower()):
            raise BundleError(
                f"`{name}` is the name of one of the bundle's own files", code=FILE_NAME, help="rename the extra file"
            )
        seen.add(name.lower())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write surgery.json: what the caller says of the model, versions, and hash and size of every other file."""
    document = {
        "format": FORMAT,
        **{key: value for key, value in manifest.items() if key not in OWN_KEYS},
        "versions": versions(),
        "files": {path.name: describe(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json_text(document, MANIFEST), encoding="utf-8")


def json_text(document: Any, name: str) -> str:
    """JSON with two spaces of indentation. Raises BundleError, naming the file, for what has no JSON."""
    try:
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{name} cannot be written: {error}",
            code=UNWRITABLE_MANIFEST,
            help="it may hold text, finite numbers, lists and dicts only",
        ) from error


def versions() -> dict[str, str]:
    """What wrote the bundle."""
    found = {}
    for key, package in (("surgery", "model-surgery"), ("torch", "torch"), ("safetensors", "safetensors")):
        try:
            found[key] = version(package)
        except PackageNotFoundError:  # a bare checkout has no metadata of its own
            found[key] = "unknown"
    return found


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": digest}


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a bundle's surgery.json. Raises BundleError for what is not a bundle."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        there = "holds no surgery.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
        raise BundleError(
            f"`{folder}` is not a bundle: it {there}", code=MISSING, help="name a folder that `surgery apply` wrote"
        )
    document = read_document(read_bytes(folder, MANIFEST), MANIFEST, FORMAT)
    files = document.get("files")
    if not isinstance(files, dict) or GRAPH not in files:
        raise malformed(MANIFEST, "it does not list the bundle's files")
    for name, row in files.items():
        check_name(name)
        good = isinstance(row, dict) and row.keys() == {"bytes", "sha256"} and type(row["bytes"]) is int
        if not good or not isinstance(row["sha256"], str) or not HASH.fullmatch(row["sha256"]):
            raise malformed(MANIFEST, f"file `{name}` has no size and hash")
    return document


def read_bytes(folder: Path, name: str) -> bytes:
    """A file of a bundle, no more of it than any of its JSON files may hold. Raises BundleError."""
    try:
        with (folder / name).open("rb") as stream:
            return stream.read(BYTES + 1)
    except OSError as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: OSError) -> BundleError:
    return BundleError(f"{name} cannot be read: {error.strerror or error}", code=MISSING, help=AGAIN)


def verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises BundleError naming the first file that is missing, truncated or changed."""
    for name, row in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{name} is missing from the bundle `{folder}`", code=MISSING, help=AGAIN)
        found = describe(path)
        if found["bytes"] != row["bytes"]:
            problem = "truncated" if found["bytes"] < row["bytes"] else "changed"
            sizes = f"{found['bytes']} bytes, surgery.json says {row['bytes']}"
            raise BundleError(f"{name} is {problem}: {sizes}", code=CHANGED, help=AGAIN)
        if found["sha256"] != row["sha256"]:
            raise BundleError(f"{name} is changed: its hash is not the one in surgery.json", code=CHANGED, help=AGAIN)


def belongs(folder: Path, name: str) -> bool:
    """Whether a file in a bundle's folder is one that the bundle lists."""
    try:
        return name == MANIFEST or name in read_manifest(folder)["files"]
    except BundleError:  # a damaged manifest lists nothing: go by the names a bundle's own files have
        return name in RESERVED or OWN.fullmatch(name) is not None
