"""`stdlib`: the source of the running interpreter's standard library. Real text that is always at hand."""

import random
import sysconfig
from pathlib import Path

from surgery.diagnostics import SurgeryError
from surgery.models.corpus.given import ROWS, TextRows, streamed, text_rows
from surgery.models.corpus.part import apart
from surgery.models.data.value import Data
from surgery.models.digest import digest
from surgery.models.loaded import LoadedModel
from surgery.operations.kinds import Share
from surgery.zoo import stdlib

SETTINGS = ("length", "calibration")
LEAST = 2
"""Rows of each part that is asked for at all."""
FOLDER = Path(sysconfig.get_path("stdlib"))


def load(
    location: str,
    model: LoadedModel,
    *,
    samples: int | None,
    seed: int,
    length: int | None = None,
    calibration: Share | int | None = None,
) -> Data:
    """`samples` rows (256 without it), read with the model's own tokenizer: `calibration` of them, half by default,
    from modules that train `zoo:code-gpt`, the others from modules that are held out.

    Rows are windows of whole modules for a model that writes, single lines for one that reads.

    Errors: S211 for a path; S212 as `text:` has them.
    """
    if location:
        raise SurgeryError(f"`stdlib` takes no path, got `{location}`", code="S211", help="write `stdlib`")
    wanted = samples or ROWS
    count = apart(calibration, wanted)

    def read(rows: int, *, held_out: bool) -> TextRows:
        texts = stdlib.texts(held_out=held_out)
        random.Random(seed).shuffle(texts)
        whole = streamed(model)
        if not whole:
            texts = [line for text in texts for line in text.splitlines(keepends=True)]
        return text_rows(texts, model, FOLDER, records=whole, samples=rows, seed=seed, length=length, calibration=0)

    held_out = read(max(LEAST, wanted - count), held_out=True)
    training = read(max(LEAST, count), held_out=False) if count else None
    return Data(
        reference="stdlib",
        description=held_out.described.split(",")[0] + f", held out, {count} more to calibrate on",
        sha256=digest(held_out.held_out),
        inputs=held_out.held_out,
        task=model.source.get("task"),
        targets=held_out.targets,
        calibration=training.held_out if training else None,
        calibration_targets=training.targets if training else None,
    )
