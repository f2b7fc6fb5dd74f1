"""`digits`: the handwritten digits that ship with the package, with their fixed classifier."""

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint
from surgery.models.data.value import Data
from surgery.models.loaded import LoadedModel
from surgery.zoo import digits
from surgery.zoo.judge import digit_judge


def load(location: str, model: LoadedModel, *, samples: int | None, seed: int) -> Data:
    """Held-out digits; a diffusion model's inputs are those digits, noised. Errors: S212 for a model of other data."""
    if location:
        raise SurgeryError(f"`digits` takes no path, got `{location}`", code="S211", help="write `digits`")
    held_out = digits.split(held_out=True)
    return Data(
        reference="digits",
        description=f"{len(held_out)} held-out handwritten digits, 8 x 8",
        sha256=fingerprint(digits.FILE),
        inputs=_inputs(model, held_out, seed),
        clean=held_out.pixels,
        labels=held_out.labels,
        real=digits.all_digits().pixels,
        judge=digit_judge(),
    )


def _inputs(model: LoadedModel, images: digits.Images, seed: int) -> dict[str, Tensor]:
    if model.diffusion is not None:
        return _noised(model, images, seed)
    names = list(model.example_inputs) if isinstance(model.example_inputs, dict) else []
    if len(names) != 1 or tuple(model.example_inputs[names[0]].shape[1:]) != digits.SHAPE:
        raise misfit(model, "one image input [batch, 1, 8, 8]")
    return {names[0]: images.pixels}


def _noised(model: LoadedModel, images: digits.Images, seed: int) -> dict[str, Tensor]:
    diffusion = model.diffusion
    if tuple(diffusion.sample_shape) != digits.SHAPE or diffusion.classes != digits.CLASSES:
        raise misfit(model, f"samples of {list(digits.SHAPE)} in {digits.CLASSES} classes")
    chance = torch.Generator().manual_seed(seed)
    index = torch.randint(diffusion.length, (len(images),), generator=chance)
    noise = torch.randn(images.pixels.shape, generator=chance)
    return diffusion.network_inputs(diffusion.noised(images.pixels, noise, index), index, images.labels)


def misfit(model: LoadedModel, wanted: str) -> SurgeryError:
    return SurgeryError(
        f"`digits` does not fit {model.reference}: it feeds {wanted}",
        code="S212",
        help='write `data noise`, or `data tensors:"file.safetensors"` with the model\'s own inputs',
    )
