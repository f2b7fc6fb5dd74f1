"""`text:"corpus.txt"`: text in a file, read with the model's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint
from surgery.models.corpus.given import text_rows
from surgery.models.data.value import Data
from surgery.models.loaded import LoadedModel
from surgery.operations.kinds import Share

SETTINGS = ("length", "calibration")


def load(location: str, model: LoadedModel, *, samples: int | None, seed: int, **settings: Any) -> Data:
    """Windows of the whole text for a model that writes, a row per line for one that reads; see `text_rows`.

    Errors: S201 missing, S212 not UTF-8, too short, or a model that takes no text.
    """
    path = Path(location.strip("\"'")).expanduser()
    texts = read_text(path).splitlines(keepends=True)
    return opened(f"text:{location}", path, texts, model, records=False, samples=samples, seed=seed, **settings)


def opened(
    reference: str,
    path: Path,
    texts: Sequence[str],
    model: LoadedModel,
    *,
    records: bool,
    samples: int | None,
    seed: int,
    length: int | None = None,
    calibration: Share | int | None = None,
) -> Data:
    """Texts of a file as data; see `text_rows`."""
    found = text_rows(
        texts, model, path, records=records, samples=samples, seed=seed, length=length, calibration=calibration
    )
    return Data(
        reference=reference,
        description=found.described,
        sha256=fingerprint(path),
        inputs=found.held_out,
        task=model.source.get("task"),
        targets=found.targets,
        calibration=found.calibration,
        calibration_targets=found.calibration_targets,
    )


def read_text(path: Path) -> str:
    """A file's text. Errors: S201 missing, S212 not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SurgeryError(
            f"`{path}` is not UTF-8 text: byte {error.start:,} cannot be read",
            code="S212",
            help=f"convert it, for example `iconv -f latin1 -t utf-8 {path.name}`",
        ) from error
    except OSError as error:
        raise SurgeryError(f"no text at `{path}`: {error.strerror}", code="S201", help="check the path") from error
