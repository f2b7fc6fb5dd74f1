"""What was measured about a sparse kernel before: at which densities it beat the dense way, per device, shape and dtype.

The same kernel at the same shape only gets faster when more is cut. So a density at which it won once, it wins below;
a density at which it lost, it loses above. Between the two there is no answer but to measure.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from surgery.atomic import write_text

FORMAT = "surgery.crossover/1"


@dataclass(frozen=True)
class Point:
    """One measurement: share of the work kept, and median milliseconds of both ways."""

    density: float
    ms: float
    baseline_ms: float
    clear: bool

    @property
    def ratio(self) -> float:
        """How many times faster than the baseline."""
        return self.baseline_ms / self.ms


class Crossover:
    """Measured points by key, in memory and, with a folder, in one file per device there.

    A key names all that a time depends on but the density: operation, candidate, shape, dtype, threads, versions.
    """

    def __init__(self, folder: Path | None, device: str):
        self.path = None if folder is None else folder / f"{_file_name(device)}.json"
        self.points: dict[str, list[Point]] = self._read()

    def verdict(self, key: str, density: float) -> tuple[bool, Point] | None:
        """(won, the point that says so), or None where nothing measured decides."""
        points = self.points.get(key, [])
        won = [point for point in points if point.density >= density and point.ratio > 1 and point.clear]
        lost = [point for point in points if point.density <= density and not (point.ratio > 1 and point.clear)]
        if won and not lost:
            return True, min(won, key=lambda point: point.density)
        if lost and not won:
            return False, max(lost, key=lambda point: point.density)
        return None

    def add(self, key: str, point: Point) -> None:
        """Remember a point; one measured at the same density before is forgotten."""
        kept = [old for old in self.points.get(key, []) if old.density != point.density]
        self.points[key] = sorted([*kept, point], key=lambda each: each.density)
        self._write()

    def _read(self) -> dict[str, list[Point]]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document.get("format") != FORMAT:
                return {}
            return {key: [Point(**row) for row in rows] for key, rows in document["points"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}  # A damaged cache costs a measurement, nothing else.

    def _write(self) -> None:
        """The whole file or nothing; a folder that cannot be written to costs a measurement next time."""
        if self.path is None:
            return
        rows = {key: [asdict(point) for point in points] for key, points in sorted(self.points.items())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"format": FORMAT, "points": rows}, indent=1))
        except OSError:
            return


def _file_name(device: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in device).strip("-").lower()
