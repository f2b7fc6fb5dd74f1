"""`tasks`: rows of copying, of names and of years, whose answers are known. See `surgery.zoo.tasks`."""

from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.corpus.part import apart
from surgery.models.data.value import Data
from surgery.models.digest import digest
from surgery.models.loaded import LoadedModel
from surgery.operations.kinds import Share
from surgery.zoo import tasks

SETTINGS = ("calibration",)
ROWS = 1024


def load(
    location: str, model: LoadedModel, *, samples: int | None, seed: int, calibration: Share | int | None = None
) -> Data:
    """`samples` rows (1,024 without it): `calibration` of them, half by default, of those that train; others held out.

    Errors: S211 for a path, S212 for a model of another vocabulary.
    """
    if location:
        raise SurgeryError(f"`tasks` takes no path, got `{location}`", code="S211", help="write `tasks`")
    _refuse_misfit(model)
    wanted = samples or ROWS
    count = apart(calibration, wanted)
    held_out = tasks.rows(wanted - count, seed, held_out=True)
    training = tasks.rows(count, seed, held_out=False)
    inputs = {"input_ids": held_out.inputs}
    return Data(
        reference="tasks",
        description=f"{len(held_out)} held-out rows of {', '.join(tasks.TASKS)}, {count} more to calibrate on",
        sha256=digest(inputs),
        inputs=inputs,
        task="causal-lm",
        targets=held_out.targets,
        right=held_out.right,
        calibration={"input_ids": training.inputs} if count else None,
        calibration_targets=training.targets if count else None,
    )


def _refuse_misfit(model: LoadedModel) -> None:
    inputs, known = model.example_inputs, (model.source.get("config") or {}).get("vocab_size")
    named = isinstance(inputs, dict) and list(inputs) == ["input_ids"] and isinstance(inputs["input_ids"], Tensor)
    if not named or (known is not None and known != len(tasks.VOCABULARY)):
        raise SurgeryError(
            f"`tasks` does not fit {model.reference}: it feeds `input_ids` of {len(tasks.VOCABULARY)} words of its own",
            code="S212",
            help='it is the language of zoo:tasks-gpt; for another model write `data text:"corpus.txt"`',
        )
