"""List what ships, compile what is not in the cache, hold every rule: the harness without its command line."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from surgery.kernels.aot import cache, manifest
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.resources import Resources
from surgery.kernels.aot.rules import Entry, doubled, violations

CHANGED = "the file changed after it was listed: run again"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """A compilation, what it uses, whether that came from the cache, and all that is wrong with it."""

    entry: Entry
    used: Resources
    cached: bool
    faults: tuple[str, ...]


def listed(pool: Pool, archs: Collection[str], files: Collection[str], shelf: Path, rows: Any = None) -> list[Entry]:
    """Everything that the files ship for the architectures, in order; one entry for what is named twice."""
    places = list(product(archs, files))
    questions = [{"do": "list", "shelf": str(shelf), "file": file, "arch": arch, "rows": rows} for arch, file in places]
    answers: dict[int, list[Entry]] = {}
    for place, answer in pool.each(questions):
        arch, file = places[place]
        if "lost" in answer:
            answers[place] = [Entry(file, -1, arch, f"{file}:", "", fault=answer["lost"])]
            continue
        found = [Entry(**{**entry, "expects": tuple(entry["expects"])}) for entry in answer["entries"]]
        answers[place] = list({(entry.title, entry.key): entry for entry in found}.values())
    return [entry for place in sorted(answers) for entry in answers[place]]


def surveyed(
    pool: Pool,
    archs: Collection[str],
    files: Collection[str] | None = None,
    shelf: Path = manifest.SHELF,
    *,
    keep: Callable[[Entry], bool] = lambda entry: True,
    progress: Progress = lambda done, of, name: None,
    fresh: bool = False,
    rows: Any = None,
) -> list[Row]:
    """A row for every compilation of `files` (all of the shelf) for `archs` that `keep` lets through."""
    names = manifest.files(shelf) if files is None else files
    entries = [entry for entry in listed(pool, archs, names, shelf, rows) if keep(entry)]
    known = {} if fresh else {entry.key: used for entry in entries if entry.key and (used := cache.find(entry.key))}
    missing = list({entry.key: entry for entry in entries if entry.key and entry.key not in known}.values())
    made: dict[str, Resources] = {}
    for entry, used in compiled(pool, missing, shelf, rows):
        made[entry.key] = used
        progress(len(made), len(missing), entry.title)
    return list(judged(entries, {**known, **made}, set(made)))


def compiled(pool: Pool, entries: list[Entry], shelf: Path, rows: Any = None) -> Iterator[tuple[Entry, Resources]]:
    """Compile; what a compiler said is kept, a time limit or a crash is not: another machine may fare better."""
    questions = [
        {"do": "compile", "shelf": str(shelf), "file": e.file, "arch": e.arch, "index": e.index, "rows": rows}
        for e in entries
    ]
    for place, answer in pool.each(questions):
        if "lost" in answer or answer["key"] != entries[place].key:
            yield entries[place], Resources(error=answer.get("lost", CHANGED))
            continue
        used = Resources.from_json(answer["used"])
        cache.keep(entries[place].key, used)
        yield entries[place], used


def judged(entries: list[Entry], used: dict[str, Resources], made: set[str]) -> Iterator[Row]:
    ambiguous = dict(doubled(entries))
    for entry in entries:
        found = used.get(entry.key, Resources())
        faults = violations(entry, found)
        if entry in ambiguous:
            faults.append(ambiguous[entry])
        yield Row(entry, found, entry.key not in made, tuple(faults))


def with_faults(row: Row, *faults: str) -> Row:
    """The row with more that is wrong with it."""
    return replace(row, faults=(*row.faults, *faults))
