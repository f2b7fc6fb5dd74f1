"""From a text or a file to a Spec."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from surgery.diagnostics import Diagnostic, Source, Span, SpecError
from surgery.language.comments import attach
from surgery.language.grammar import comments_of
from surgery.language.text import clauses_of
from surgery.language.tree import Spec

LARGEST = 2_000_000
YAML_FILE = (".yaml", ".yml", ".json")
SPEC_FILE = (".surgery", *YAML_FILE)
YAML_START = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*(?:---|%YAML|[{\[]|-[ \n]|[^\s:#\"]+:(?:[ \t\n]|\Z))")


@dataclass(frozen=True)
class Reading:
    """What could be read of a source, and every fault of what could not."""

    spec: Spec
    faults: tuple[Diagnostic, ...]


def parse(text_or_path: str | PathLike[str], name: str | None = None) -> Spec:
    """Read a spec from its text or from a file.

    A `Path` is a file; so is a string that ends in `.surgery`, `.yaml`, `.yml` or `.json` and holds no space.
    Text of the language and YAML are told apart by the file's name, else by their first line.
    Raises SpecError with all faults of the text.
    """
    reading = read(source_of(text_or_path, name))
    if reading.faults:
        raise SpecError(diagnostics=reading.faults)
    return reading.spec


def read(source: Source) -> Reading:
    """Read a source as far as it can be read; faults are in the order of the text."""
    text = source.text
    if is_yaml(source):
        from surgery.language.yaml_reader import read_yaml

        clauses, faults, comments = read_yaml(source)
    else:
        clauses, faults = clauses_of(text, lambda start, end: Span(source, start, end))
        comments = comments_of(text)
    kept, below = attach(source, clauses, comments)
    ordered = sorted(faults, key=lambda fault: fault.span.start if fault.span else 0)
    return Reading(Spec(kept, below, source=source), tuple(ordered))


def is_yaml(source: Source) -> bool:
    """Whether a source is YAML: by its name, else by its first line."""
    if source.name.endswith(".surgery"):
        return False
    return source.name.endswith(YAML_FILE) or bool(YAML_START.match(source.text))


def source_of(text_or_path: str | PathLike[str], name: str | None = None) -> Source:
    """The source behind a text or a path. Raises SpecError where a file cannot be read."""
    if isinstance(text_or_path, str) and not _looks_like_file(text_or_path):
        return Source(name or "<string>", normalised(text_or_path))
    path = Path(text_or_path)
    return source_of_bytes(_bytes_of(path), name or str(path))


def source_of_bytes(data: bytes, name: str) -> Source:
    """Decode what a file or a pipe held. Raises SpecError where it is no text or is too large for a spec."""
    if len(data) > LARGEST:
        raise SpecError(
            f"`{name}` is too large for a spec: {len(data)} bytes",
            code="S012",
            help=f"a spec has at most {LARGEST} bytes; is this a checkpoint?",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(name, f"byte {error.start} is not UTF-8") from None
    if "\0" in text:
        raise _not_text(name, f"byte {text.index(chr(0))} is zero")
    return Source(name, normalised(text))


def normalised(text: str) -> str:
    """Without a byte order mark, line ends as `\\n`."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _looks_like_file(text: str) -> bool:
    return text.endswith(SPEC_FILE) and not re.search(r"\s", text)


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except IsADirectoryError:
        raise SpecError(f"`{path}` is a folder, not a spec", code="S010", help="name the spec file inside it") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(f"cannot read `{path}`: {reason}", code="S010") from None


def _not_text(name: str, reason: str) -> SpecError:
    return SpecError(f"`{name}` is not a text file", code="S011", notes=[reason], help="a spec is UTF-8 text or YAML")
