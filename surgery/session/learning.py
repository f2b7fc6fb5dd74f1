"""What works behind the cuts learn from: calibration data as the cut model takes it, or the sampler's own states."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from surgery.session.matching import sampled_states
from surgery.session.prepare import Prepared
from surgery.targets.calibration import Calibration
from surgery.targets.context import Context


def learned_from(prepared: Prepared, choices: Iterable[Any], context: Context) -> Calibration | None:
    """None where there is nothing: no calibration data, and no diffusion model, which makes its own when it samples.

    The states of a sampler have no targets: what learns from them learns from the original's outputs.
    """
    calibration = context.calibration
    if calibration is None and prepared.model.diffusion is not None:
        if "states" not in context.known:
            context.known["states"] = sampled_states(prepared)
        return Calibration(context.known["states"], dict.fromkeys(prepared.model.example_inputs))
    for work, choice in zip(prepared.works, choices, strict=True):
        if calibration is not None and choice is not None and hasattr(work, "calibrated"):
            calibration = work.calibrated(choice, calibration)
    return calibration


def seen_by(prepared: Prepared, choices: Iterable[Any], context: Context, **changes: Any) -> Context:
    """The context of a work behind the cuts."""
    return replace(context, calibration=learned_from(prepared, choices, context), passage=None, **changes)
