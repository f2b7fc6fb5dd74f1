"""Pictures as PNG data URIs, written with zlib alone; grids of samples."""

import base64
import struct
import zlib

import numpy

ROWS, COLUMNS, LEAST, GAP = 12, 10, 4, 1
SIDE, PIXELS = 64, 100_000
"""Images wider than 64 are shrunk, and where 100 000 pixels are not enough, fewer classes of four."""


def sample_grids(finding: dict) -> list[dict]:
    """Grids "before", "after" and their absolute difference of a finding of kind "samples", a row per class.

    Each is {"title", "source" (data URI), "alt", "labels" (one per row)}. Samples are uint8 [N, H, W] or [N, H, W, 3];
    the first 12 classes are drawn with up to 10 samples each.
    """
    before, after = (_shrunk(_colour(finding[side])) for side in ("before", "after"))
    rows = _rows(finding["labels"], before[0].size // 3)
    labels = [str(finding["labels"][row[0]]) for row in rows]
    difference = numpy.abs(before.astype(numpy.int16) - after).astype(numpy.uint8)
    grids = (("before", before), ("after", after), ("difference", difference))
    return [
        {
            "title": title,
            "source": png(_grid(images, rows)),
            "alt": f"samples {title}: {len(rows)} classes, {len(rows[0])} samples each, one class per row",
            "labels": labels,
        }
        for title, images in grids
    ]


def png(pixels: numpy.ndarray) -> str:
    """RGBA pixels uint8 [H, W, 4] as a PNG data URI; the same pixels give the same bytes."""
    return _data_uri(pixels, 6, [])


def indexed(pixels: numpy.ndarray, palette: list[tuple[int, int, int, int]]) -> str:
    """Pixels uint8 [H, W] that are places in a palette of up to 256 RGBA colours, as a PNG data URI: a byte per pixel."""
    colours, alphas = bytes(part for colour in palette for part in colour[:3]), bytes(colour[3] for colour in palette)
    return _data_uri(pixels, 3, [_chunk(b"PLTE", colours), _chunk(b"tRNS", alphas)])


def _data_uri(pixels: numpy.ndarray, colours: int, between: list[bytes]) -> str:
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    chunks = [header, *between, _chunk(b"IDAT", zlib.compress(lines, 9)), _chunk(b"IEND", b"")]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _colour(samples: list) -> numpy.ndarray:
    """Samples as [N, H, W, 3]; of any other number of channels only the first is shown, in grey."""
    images = numpy.asarray(samples, dtype=numpy.uint8)
    images = images if images.ndim == 4 else images[..., None]
    return images if images.shape[-1] == 3 else images[..., :1].repeat(3, axis=-1)


def _shrunk(images: numpy.ndarray) -> numpy.ndarray:
    """Images [N, H, W, 3] averaged over square blocks until neither side is above 64."""
    factor = -(-max(images.shape[1:3]) // SIDE)
    if factor == 1:
        return images
    count, height, width = images.shape[0], images.shape[1] // factor, images.shape[2] // factor
    blocks = images[:, : height * factor, : width * factor].reshape(count, height, factor, width, factor, 3)
    return blocks.mean(axis=(2, 4)).round().astype(numpy.uint8)


def _rows(labels: list, pixels: int) -> list[list[int]]:
    """Indices of the samples, a row per class, each of one length."""
    budget = max(1, PIXELS // pixels)
    classes = sorted(set(labels))[: min(ROWS, max(1, budget // LEAST))]
    columns = max(1, min(COLUMNS, budget // len(classes)))
    rows = [[index for index, label in enumerate(labels) if label == name][:columns] for name in classes]
    length = min(map(len, rows))
    return [row[:length] for row in rows]


def _grid(images: numpy.ndarray, rows: list[list[int]]) -> numpy.ndarray:
    height, width = images.shape[1:3]
    shape = (len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 4)
    canvas = numpy.zeros(shape, dtype=numpy.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width, :3] = images[index]
            canvas[top : top + height, left : left + width, 3] = 255
    return canvas
