"""Real English sentences that every Python brings along: `python -m bench.sentences [FILE]`, one a line.

They come from the documentation of the standard library: its topics and its docstrings. The list is the same wherever
the same Python is (3.11 has about 12,000), in an order that a hash decides, so that any part of it is a fair sample.
"""

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

WORDS = range(6, 41)
LETTERS = 0.93
"""Least share of letters, spaces and plain punctuation: code is no sentence."""
ELSEWHERE = {"site-packages", "test", "tests", "idlelib", "lib2to3"}


def sentences() -> list[str]:
    """Every sentence once, in the order of its SHA-256."""
    paragraphs = (paragraph for text in _texts() for paragraph in re.split(r"\n\s*\n", text))
    found = {sentence for paragraph in paragraphs for sentence in _parts(paragraph)}
    return sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).hexdigest())


def _texts() -> Iterator[str]:
    yield from topics.values()
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in root.rglob("*.py"):
        if not ELSEWHERE & set(path.relative_to(root).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # files that are there to be wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _parts(paragraph: str) -> Iterator[str]:
    for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
        plain = sum(letter.isalpha() or letter in " ,.'-" for letter in part)
        if part[:1].isupper() and part.endswith(".") and len(part.split()) in WORDS and plain >= LETTERS * len(part):
            yield part


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    text = "\n".join(sentences()) + "\n"
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
