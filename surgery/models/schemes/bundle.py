"""A plain path, or `bundle:PATH`: a bundle that `surgery` saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint
from surgery.models.diffusion import Diffusion
from surgery.models.huggingface.examples import LENGTH, positions
from surgery.models.huggingface.folder import files_beside
from surgery.models.loaded import LoadedModel


def load(location: str, *, weights: bool = True) -> LoadedModel:
    """Errors: S201 for no such folder, S210 for a folder that is no bundle, S7xx for a damaged one.

    A bundle is always read with its weights, then moved to the meta device where they are not wanted.
    """
    folder = Path(location).expanduser()
    if not folder.exists():
        raise SurgeryError(f"no model at `{location}`: there is no such folder", code="S201", help=_meant(location))
    if not (folder / "surgery.json").is_file():
        raise SurgeryError(f"`{location}` is not a bundle: it has no surgery.json", code="S210", help=_cure(folder))
    from surgery import bundle

    module = bundle.load(folder).eval()
    manifest = bundle.read_manifest(folder)
    schedule, data = manifest.get("diffusion"), manifest.get("data")
    source = source_of(manifest, folder)
    return LoadedModel(
        reference=location,
        module=module if weights else module.to("meta"),
        example_inputs=example_inputs(module, source.get("config") or {}),
        diffusion=Diffusion.from_document(schedule) if schedule else None,
        files={path.name: fingerprint(path) for path in sorted(folder.glob("*.safetensors"))} if weights else {},
        default_data=data.get("reference") if isinstance(data, dict) else None,
        source=source,
    )


def source_of(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the manifest says of the library the model came from, and the tokenizer's files; empty for none."""
    found = manifest.get("source")
    return {**found, "tokenizer_files": files_beside(folder)} if isinstance(found, Mapping) else {}


def example_inputs(module: torch.fx.GraphModule, config: Mapping[str, Any], batch: int = 2) -> dict[str, Tensor]:
    """Keyword inputs in the shapes the saved graph was captured with, free axes filled in: the first with `batch`, others
    with a short sequence. Tokens and vectors are seeded, masks hide nothing, anything else is zero.

    config: of the library the model came from, where there is one: how many tokens and positions it knows
    """
    from surgery.bundle import value_of

    length = min(LENGTH, positions(config) or LENGTH)
    inputs = {}
    for node in module.graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if value is not None:
            free = [batch if axis == 0 or size == value.shape[0] else length for axis, size in enumerate(value.shape)]
            shape = [size if isinstance(size, int) else new for size, new in zip(value.shape, free, strict=True)]
            inputs[str(node.target)] = _example(str(node.target), shape, value.dtype, config.get("vocab_size"))
    return inputs


def _example(name: str, shape: list[int], dtype: torch.dtype, vocabulary: Any) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    if name.endswith("mask"):
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point and len(shape) > 2:
        return torch.randn(shape, generator=chance).to(dtype)
    if name.endswith("input_ids") and isinstance(vocabulary, int):
        return torch.randint(vocabulary, shape, generator=chance).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _cure(folder: Path) -> str:
    if folder.is_file():
        return "give the folder, not a file in it"
    if (folder / "model_index.json").is_file() or (folder / "diffusion_pytorch_model.safetensors").is_file():
        return f"if diffusers saved it, write `diffusers:{folder}`"
    if (folder / "config.json").is_file():
        return f"if transformers saved it, write `hf:{folder}`, if diffusers did, `diffusers:{folder}`"
    return "a bundle is what `surgery apply SPEC --out FOLDER` writes"


def _meant(location: str) -> str:
    from surgery import zoo

    if location in zoo.names():
        return f"did you mean `zoo:{location}`?"
    return "a path names a bundle; `surgery zoo` lists the models that ship with the package"
