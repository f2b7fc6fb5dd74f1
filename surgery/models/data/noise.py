"""`noise`: random inputs in the model's own shapes, for a model without data. What is measured is output error."""

import hashlib

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.data.value import Data
from surgery.models.loaded import LoadedModel

COUNT = 64
MOST = 512


def load(location: str, model: LoadedModel, *, samples: int | None, seed: int) -> Data:
    """Floats are N(0, 1), integers are drawn from the example's own values, timesteps and classes from the schedule.

    At most 512 inputs are drawn, whatever `samples` asks: a spec's `samples` also counts generated ones.
    """
    if location:
        raise SurgeryError(f"`noise` takes no path, got `{location}`", code="S211", help="write `noise`")
    if not isinstance(model.example_inputs, dict) or not model.example_inputs:
        raise SurgeryError(
            f"`noise` needs the names and shapes of the inputs of {model.reference}",
            code="S212",
            help="give example inputs as a dict of keyword tensors",
        )
    count = min(samples or COUNT, MOST)
    chance = torch.Generator().manual_seed(seed)
    examples = {name: value for name, value in model.example_inputs.items() if isinstance(value, Tensor)}
    inputs = {name: _drawn(value, count, chance) for name, value in examples.items()}
    if model.diffusion is not None:
        inputs = _scheduled(model, count, chance)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in inputs.values())).hexdigest()
    return Data("noise", f"{count} random inputs, seed {seed}", digest, inputs)


def _drawn(example: Tensor, count: int, chance: torch.Generator) -> Tensor:
    shape = (count, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=chance)
    values = torch.zeros(1, dtype=example.dtype) if example.is_meta else example.flatten()
    return values[torch.randint(len(values), shape, generator=chance)]


def _scheduled(model: LoadedModel, count: int, chance: torch.Generator) -> dict[str, Tensor]:
    diffusion = model.diffusion
    noise = torch.randn(count, *diffusion.sample_shape, generator=chance)
    index = torch.randint(diffusion.length, (count,), generator=chance)
    label = torch.randint(diffusion.classes, (count,), generator=chance)
    return diffusion.network_inputs(noise, index, label)
