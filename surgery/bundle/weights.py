"""The safetensors files of a bundle."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from surgery.bundle.faults import MISMATCH
from surgery.bundle.files import OWN
from surgery.bundle.tensors import Entry
from surgery.diagnostics import BundleError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def write_tensors(folder: Path, tensors: Mapping[str, tuple[str, Tensor]], table: Mapping[str, Entry]) -> list[str]:
    """Write the safetensors file, or shards and their index, into a folder; return the file names."""
    stored = {name: tensors[name][1].detach() for name, entry in table.items() if not entry.tied}
    shards = list(_shards(stored))
    if len(shards) == 1:
        _write_shard(folder / SINGLE, shards[0])
        return [SINGLE]
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    places: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*names, INDEX]


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _write_shard(path: Path, shard: Mapping[str, Tensor]) -> None:
    # A copy of its own for each tensor, for safetensors refuses tensors that share memory.
    plain = {
        name: tensor.resolve_neg().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in shard.items()
    }
    save_file(plain, path, metadata={"format": "pt"})


def tensor_files(names: Mapping[str, Any]) -> list[str]:
    """Which of a bundle's files hold tensors."""
    return sorted(name for name in names if name.endswith(".safetensors") and OWN.fullmatch(name))


def read_tensors(
    folder: Path, files: list[str], table: Mapping[str, Entry], device: torch.device
) -> dict[str, tuple[str, Tensor]]:
    """Name → (kind, tensor) on a device, tied ones shared. Raises BundleError where file and table disagree."""
    wanted = {name for name, entry in table.items() if not entry.tied}
    loaded: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 (not a mapping)
                    _expect(name in wanted and name not in loaded, f"{file}: tensor `{name}` is not in graph.json")
                    loaded[name] = _placed(content, name, table[name], device, file)
        except SafetensorError as error:
            raise _mismatch(f"{file}: not a safetensors file ({error})") from error
    missing = sorted(wanted - loaded.keys())
    _expect(not missing, f"tensor `{missing[0] if missing else ''}` and {len(missing) - 1} others are in no file")
    return _tie(loaded, table)


def _placed(content: Any, name: str, entry: Entry, device: torch.device, file: str) -> Tensor:
    found = content.get_tensor(name)
    same = found.dtype == entry.dtype and tuple(found.shape) == entry.shape
    _expect(same, f"{file}: tensor `{name}` is {found.dtype} {list(found.shape)}, graph.json says otherwise")
    # Memory of our own: a mapped file is aligned to 8 bytes only, and kernels round differently on such memory.
    strides = entry.strides or found.contiguous().stride()
    return torch.empty_strided(entry.shape, strides, dtype=entry.dtype, device=entry.device or device).copy_(found)


def _tie(loaded: Mapping[str, Tensor], table: Mapping[str, Entry]) -> dict[str, tuple[str, Tensor]]:
    tensors: dict[str, tuple[str, Tensor]] = {}
    for name, entry in table.items():
        if entry.tied:
            tensors[name] = tensors[entry.tied]
        elif entry.kind == "parameter":
            tensors[name] = (entry.kind, nn.Parameter(loaded[name], entry.requires_grad))
        else:
            tensors[name] = (entry.kind, loaded[name])
    return tensors


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise _mismatch(message)


def _mismatch(message: str) -> BundleError:
    return BundleError(
        message,
        code=MISMATCH,
        help="graph.json and the safetensors files do not belong together: write or copy the bundle again as a whole",
    )
