"""`jsonl:"file.jsonl" field=text`: a JSON object per line, one field of it read with the model's own tokenizer."""

import json
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError, did_you_mean
from surgery.models.data.text import opened, read_text
from surgery.models.data.value import Data
from surgery.models.loaded import LoadedModel

SETTINGS = ("length", "calibration", "field")
FIELD = "text"


def load(location: str, model: LoadedModel, *, samples: int | None, seed: int, **settings: Any) -> Data:
    """A row per record for a model that reads; for one that writes windows of all records, a sentence end behind each.

    Errors: S201 missing, S212 a line that is no JSON object with the field as text, or as `text:` has them.
    """
    path = Path(location.strip("\"'")).expanduser()
    field = settings.pop("field", FIELD)
    numbered = enumerate(read_text(path).split("\n"), 1)
    texts = [_text(path, number, line, field) for number, line in numbered if line.strip()]
    return opened(f"jsonl:{location}", path, texts, model, records=True, samples=samples, seed=seed, **settings)


def _text(path: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _fault(path, number, f"is not JSON: {error}", "every line is one JSON object") from error
    if not isinstance(record, dict):
        raise _fault(path, number, "is no JSON object", "every line is one JSON object")
    if not isinstance(record.get(field), str):
        names = [name for name, value in record.items() if isinstance(value, str)]
        help = did_you_mean(field, names) or "write `field=` with the name of one that holds text"
        raise _fault(path, number, f"has no text in `{field}`", help)
    return record[field]


def _fault(path: Path, number: int, what: str, help: str) -> SurgeryError:
    return SurgeryError(f"`{path}`: line {number} {what}", code="S212", help=help)
