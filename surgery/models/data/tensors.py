"""`tensors:"file.safetensors"`: your own inputs, a tensor per input name of the model, samples along the first axis."""

from pathlib import Path

from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint, read_tensors, require_finite
from surgery.models.corpus.part import apart, parted
from surgery.models.data.value import Data
from surgery.models.loaded import LoadedModel
from surgery.operations.kinds import Share


SETTINGS = ("calibration",)


def load(
    location: str, model: LoadedModel, *, samples: int | None, seed: int, calibration: Share | int | None = None
) -> Data:
    """The first `samples` rows of the file, all without it; `calibration` of them, drawn with the seed, kept apart.

    A diffusion model may be given clean samples and labels alone, without a timestep: then its denoising loss is
    measured on them. With a timestep the rows are plain inputs, and the output error is measured.

    Errors: S201, S202, S204 for a bad file; S212 for names, shapes or lengths that do not fit.
    """
    path = Path(location.strip("\"'")).expanduser()
    tensors = read_tensors(path)
    require_finite(tensors, str(path))
    rows = _rows(path, tensors)
    tensors = {name: value[:samples] for name, value in tensors.items()}
    count = rows if samples is None else min(rows, samples)
    described = f"{count} rows of {path.name}"
    if model.diffusion is not None and set(tensors) == set(model.diffusion.inputs[::2]):
        return _clean(path, described, tensors, model)
    _require_inputs(path, tensors, model)
    first = apart(calibration, count) if calibration is not None else 0
    held_out, kept = parted(tensors, first, seed=seed)
    return Data(
        reference=f"tensors:{location}",
        description=described,
        sha256=fingerprint(path),
        inputs=held_out,
        calibration=kept if first else None,
    )


def _rows(path: Path, tensors: dict[str, Tensor]) -> int:
    lengths = {name: len(value) if value.ndim else 0 for name, value in tensors.items()}
    if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
        listed = tuple(f"{name}: {length} rows" for name, length in lengths.items())
        raise SurgeryError(
            f"`{path}` has no common number of rows",
            code="S212",
            notes=listed,
            help="every tensor needs the same first axis, the samples",
        )
    return next(iter(lengths.values()))


def _clean(path: Path, described: str, tensors: dict[str, Tensor], model: LoadedModel) -> Data:
    diffusion = model.diffusion
    sample, _, label = diffusion.inputs
    clean, labels = tensors[sample].float(), tensors[label].long()
    if tuple(clean.shape[1:]) != tuple(diffusion.sample_shape) or labels.ndim != 1:
        raise SurgeryError(
            f"`{path}`: {sample} {list(clean.shape)} and {label} {list(labels.shape)} do not fit {model.reference}",
            code="S212",
            help=f"{sample} is [N, {', '.join(map(str, diffusion.sample_shape))}], {label} is [N]",
        )
    index = labels.new_tensor(range(len(labels))) % diffusion.length
    inputs = diffusion.network_inputs(clean, index, labels)
    return Data(f"tensors:{path}", described, fingerprint(path), inputs, clean=clean, labels=labels)


def _require_inputs(path: Path, tensors: dict[str, Tensor], model: LoadedModel) -> None:
    if not isinstance(model.example_inputs, dict) or not model.example_inputs:
        return
    named = {name for name, value in model.example_inputs.items() if isinstance(value, Tensor)}
    missing = sorted(named - set(tensors))
    unexpected = sorted(set(tensors) - set(model.example_inputs))
    if missing or unexpected:
        raise SurgeryError(
            f"the tensors of `{path}` are not the inputs of {model.reference}",
            code="S212",
            notes=tuple(f"missing: {name}" for name in missing) + tuple(f"unexpected: {name}" for name in unexpected),
            help="its inputs are " + ", ".join(f"`{name}`" for name in model.example_inputs),
        )
