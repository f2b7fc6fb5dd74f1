"""Read a checkpoint and put it into a module, or say what is wrong with it. safetensors only."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from surgery.diagnostics import SurgeryError

NAMED = 5
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def fingerprint(path: Path) -> str:
    """sha256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU, in its own dtype.

    Errors: S201 missing, S205 a pickle, S202 truncated or not safetensors.
    """
    if path.suffix in PICKLED:
        raise pickled([path])
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SurgeryError(f"no checkpoint at `{path}`", code="S201", help="check the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SurgeryError(
            f"`{path}` cannot be read as safetensors: {error}",
            code="S202",
            notes=(f"the file has {path.stat().st_size:,} bytes" if path.is_file() else "it is not a file",),
            help="it was cut off or is of another format: download or save it again",
        ) from error


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of a folder: `stem`.safetensors, or the shards that its index names.

    Errors: S205 where only pickles are there, S201 where nothing is or a shard is missing, S202 for a damaged index.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        return _shards(index)
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLED)
    if pickles:
        raise pickled(pickles)
    raise SurgeryError(
        f"`{folder}` holds no weights: neither {whole.name} nor {index.name}",
        code="S201",
        help="save the model with `model.save_pretrained(folder)`",
    )


def pickled(paths: list[Path]) -> SurgeryError:
    """The refusal of a checkpoint that would run code when read."""
    target = paths[0].with_suffix(".safetensors")
    return SurgeryError(
        f"`{paths[0]}` is a pickle, which can run any code when it is read",
        code="S205",
        help=f"where you trust it, convert it once with `safetensors.torch.save_file`, to `{target.name}`",
    )


def fit(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy `tensors` into the module, each converted to the dtype the module has.

    Errors: S203 for missing, unexpected or mis-shaped tensors, S204 for NaN or infinite ones; the module then stays
    as it was.
    """
    wanted = module.state_dict()
    faults = [
        *fault("missing", [name for name in wanted if name not in tensors]),
        *fault("unexpected", [name for name in tensors if name not in wanted]),
        *fault(
            "of another shape",
            [
                f"{name} {list(tensors[name].shape)}, the model has {list(value.shape)}"
                for name, value in wanted.items()
                if name in tensors and tensors[name].shape != value.shape
            ],
        ),
    ]
    if faults:
        raise SurgeryError(
            f"the checkpoint does not fit {what}",
            code="S203",
            notes=faults,
            help="it belongs to another architecture or size",
        )
    require_finite(tensors, what)
    module.load_state_dict(dict(tensors))


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Errors: S204, which names the tensors with NaN or infinite values."""
    bad = [_ailment(name, value) for name, value in tensors.items() if value.is_floating_point() and not _finite(value)]
    if not bad:
        return
    notes = tuple(bad[:NAMED]) + ((f"and {len(bad) - NAMED} more tensors",) if len(bad) > NAMED else ())
    raise SurgeryError(
        f"the weights of {what} are not finite",
        code="S204",
        notes=notes,
        help="training diverged or the file is damaged: use an earlier checkpoint",
    )


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def _ailment(name: str, value: Tensor) -> str:
    nan, infinite = int(torch.isnan(value.float()).sum()), int(torch.isinf(value.float()).sum())
    return f"{name}: {nan:,} NaN and {infinite:,} infinite of {value.numel():,} values"


def fault(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{len(names)} {kind}: " + ", ".join(names[:NAMED]) + more]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SurgeryError(
            f"`{index}` is not an index of shards: {error}", code="S202", help="save it again"
        ) from error
    for name in names:
        if Path(name).name != name:
            raise SurgeryError(f"`{index}` names a file outside its folder: {name}", code="S202")
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SurgeryError(f"`{index.parent}` lacks shards: {', '.join(missing[:NAMED])}", code="S201")
    return paths
