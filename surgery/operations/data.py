"""`data text:"corpus.txt" length=512 samples=128`: what the model is measured on."""

from typing import Any

from surgery.language import Reference
from surgery.operations.base import operation
from surgery.operations.fields import setting, subject
from surgery.operations.kinds import Share, whole


@operation
class Data:
    """Name the data that quality is measured on, and how much of it.

    before   nothing               after   the data, opened
    refuses  a source that does not fit the model
    """

    phase = None
    reference: Reference = subject(
        Reference,
        doc='`digits`, `tasks`, `stdlib`, `noise`, `text:"corpus.txt"`, `jsonl:"file.jsonl"`, `images:"folder"`, '
        '`tensors:"file.safetensors"`',
    )
    samples: int | None = setting(whole(at_least=1), default=None, doc="how many samples")
    seed: int = setting(whole(at_least=0), default=0, doc="of everything drawn at random")
    steps: int | None = setting(whole(at_least=1), default=None, doc="sampling steps of a diffusion model")
    batch: int | None = setting(whole(at_least=1), default=None, doc="samples in one forward pass")
    length: int | None = setting(whole(at_least=2), default=None, doc="tokens of a row of text")
    calibration: Share | None = setting(
        Share, default=None, doc="of the samples, those kept apart to calibrate on; half where they are text or images"
    )
    field: str | None = setting(str, default=None, doc="of a JSON record, the one that holds text; `text` by default")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given, by name, and the seed."""
        names = ("samples", "seed", "steps", "batch", "length", "calibration", "field")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
