"""A picture of many samples: one row per class."""

import os
from pathlib import Path

import torch
from torch import Tensor

from surgery.zoo.digits import to_grey

SCALE = 6
GAP = 1


def write_grid(path: Path, images: Tensor, rows: int) -> None:
    """Write samples [N, 1, H, W] in [-1, 1], labels cycling through `rows` classes, as a PNG, whole or not at all."""
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        imsave(partial, grid(images, rows).numpy(), format="png", cmap="gray", vmin=0, vmax=255)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def grid(images: Tensor, rows: int) -> Tensor:
    """uint8 [height, width]: sample i stands in row i % rows, column i // rows; every pixel is 6 x 6."""
    grey = to_grey(images)[:, 0]
    _, height, width = grey.shape
    columns = len(grey) // rows
    padded = torch.nn.functional.pad(grey, (GAP, GAP, GAP, GAP), value=64)
    cells = padded[: rows * columns].reshape(columns, rows, height + 2 * GAP, width + 2 * GAP)
    picture = cells.permute(1, 2, 0, 3).reshape(rows * (height + 2 * GAP), columns * (width + 2 * GAP))
    return picture.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
