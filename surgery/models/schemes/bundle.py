"""A plain path, or `bundle:PATH`: a bundle that `surgery` saved."""

from pathlib import Path

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint
from surgery.models.diffusion import Diffusion
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
    return LoadedModel(
        reference=location,
        module=module if weights else module.to("meta"),
        example_inputs=example_inputs(module),
        diffusion=Diffusion.from_document(schedule) if schedule else None,
        files={path.name: fingerprint(path) for path in sorted(folder.glob("*.safetensors"))} if weights else {},
        default_data=data.get("reference") if isinstance(data, dict) else None,
    )


def example_inputs(module: torch.fx.GraphModule, batch: int = 2) -> dict[str, Tensor]:
    """Keyword zeros in the shapes the saved graph was captured with, its free dimensions set to `batch`."""
    from surgery.bundle import value_of

    inputs = {}
    for node in module.graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if value is not None:
            shape = [size if isinstance(size, int) else batch for size in value.shape]
            inputs[str(node.target)] = torch.zeros(shape, dtype=value.dtype)
    return inputs


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
