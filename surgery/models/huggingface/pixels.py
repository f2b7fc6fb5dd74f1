"""A picture as a vision model's input, by the settings of its preprocessor_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError

MIDDLE = 0.5
BILINEAR = 2


def pixels(path: Path, settings: Mapping[str, Any], shape: tuple[int, int, int]) -> Tensor:
    """[C, H, W] float32. `shape` is what the model takes; without settings values become -1 to 1.

    As transformers' image processors: resize (to `size`, or the shorter side to `shortest_edge`), crop the centre,
    scale by `rescale_factor`, subtract `image_mean`, divide by `image_std`. Errors: S206 without Pillow, S212 unreadable.
    """
    channels, height, width = shape
    picture = _sized(_opened(path, channels), settings, (height, width))
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    values = values.view(height, width, channels).permute(2, 0, 1).float()
    if settings.get("do_rescale", True):
        values = values * settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_normalize", True):
        return values.contiguous()
    mean, spread = (_column(settings.get(name, MIDDLE), channels) for name in ("image_mean", "image_std"))
    return ((values - mean) / spread).contiguous()


def _opened(path: Path, channels: int) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise SurgeryError(
            f"reading pictures needs Pillow: {error}", code="S206", help="pip install 'model-surgery[hf]'"
        ) from error
    try:
        with Image.open(path) as picture:
            return picture.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SurgeryError(
            f"`{path}` cannot be read as a picture: {error}", code="S212", help="take it out of the folder"
        ) from error


def _sized(picture: Any, settings: Mapping[str, Any], wanted: tuple[int, int]) -> Any:
    """Resized, then the centre of the wanted size cut out."""
    size, resample = settings.get("size"), settings.get("resample", BILINEAR)
    height, width = wanted
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if shortest and settings.get("do_resize", True):
        scale = shortest / min(picture.size)
        picture = picture.resize([max(shortest, round(side * scale)) for side in picture.size], resample)
    if not shortest or picture.width < width or picture.height < height:
        return picture.resize((width, height), resample)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _column(values: Any, channels: int) -> Tensor:
    given = values if isinstance(values, list | tuple) else [values] * channels
    return torch.tensor([float(value) for value in given[:channels]]).view(-1, 1, 1)
