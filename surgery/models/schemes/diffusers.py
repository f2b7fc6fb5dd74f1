"""`diffusers:PATH`: a DiT that diffusers saved, alone or inside its pipeline folder.

The module is diffusers' own class, so a figure measured here is diffusers' figure. It is not numerically the original
DiT: diffusers divides the exponents of its timestep features by (half - 1), the original code by half, and converters
copy the weights unchanged. At late timesteps the two features differ widely (cosine .49 at t = 999).
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fingerprint, fit, read_tensors, weight_files
from surgery.models.diffusion import Diffusion
from surgery.models.loaded import LoadedModel

STEM = "diffusion_pytorch_model"
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")


def load(location: str, *, weights: bool = True) -> LoadedModel:
    """Read `config.json` and safetensors of the folder, or of its `transformer/`; weights become float32.

    The noise schedule is the pipeline's `scheduler/`, else DDPM's default.
    Errors: S201 missing, S206 diffusers not installed, S209 a config that cannot be served, S202..S205 bad weights.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise SurgeryError(
            f"no model at `diffusers:{location}`: there is no such folder",
            code="S201",
            help="give a folder written by `save_pretrained`; names on the Hugging Face hub are not downloaded",
        )
    network = folder / "transformer" if (folder / "transformer").is_dir() else folder
    config = read_config(network / "config.json")
    with torch.device("cpu" if weights else "meta"):
        module = build(config, network)
    files = {}
    if weights:
        paths = weight_files(network, STEM)
        fit(module, {name: value for path in paths for name, value in read_tensors(path).items()}, location)
        files = {path.name: fingerprint(path) for path in paths}
    diffusion = diffusion_of(module, folder)
    return LoadedModel(f"diffusers:{location}", module.eval(), example_inputs(diffusion), diffusion, files)


def read_config(path: Path) -> dict[str, Any]:
    """Errors: S201 missing, S209 not a JSON object."""
    if not path.is_file():
        raise SurgeryError(
            f"`{path.parent}` is not a model that diffusers saved: it has no {path.name}",
            code="S201",
            help="give the folder of a DiT, or of a pipeline that holds `transformer/`",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SurgeryError(f"`{path}` is not JSON: {error}", code="S209", help="save the model again") from error
    if not isinstance(config, dict):
        raise SurgeryError(f"`{path}` is not a JSON object", code="S209", help="save the model again")
    return config


def build(config: dict[str, Any], folder: Path) -> nn.Module:
    """The untrained network. `Transformer2DModel` with `ada_norm_zero` is what older pipelines call a DiT."""
    name = config.get("_class_name")
    if name not in CLASSES or config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise SurgeryError(
            f"`{folder}` holds a {name or 'model of no named class'}, not a DiT",
            code="S209",
            help="only DiTTransformer2DModel is read; from Python, pass any module to `surgery.compile`",
        )
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return transformer_class().from_config(known)
    except (TypeError, ValueError, ZeroDivisionError, NotImplementedError, RuntimeError) as error:
        raise SurgeryError(
            f"diffusers cannot build the network of `{folder}`: {error}",
            code="S209",
            help="compare its config.json with the model's source",
        ) from error


def diffusion_of(module: nn.Module, folder: Path) -> Diffusion:
    """The schedule beside the network. Errors: S209 for one that does not predict noise or is not DDPM's or DDIM's."""
    settings = {}
    if (folder / "scheduler").is_dir():
        settings = read_config(folder / "scheduler" / "scheduler_config.json")
    if settings.get("prediction_type", "epsilon") != "epsilon":
        raise SurgeryError(
            f"`{folder}` predicts {settings['prediction_type']}, not noise",
            code="S209",
            help="only `prediction_type: epsilon` is sampled from",
        )
    config = module.config
    wanted = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    betas = scheduler_class()(**{key: settings[key] for key in wanted if key in settings}).betas
    return Diffusion(
        betas=betas.double().cpu(),
        classes=config.num_embeds_ada_norm,
        null_class=config.num_embeds_ada_norm,
        sample_shape=(config.in_channels, config.sample_size, config.sample_size),
        time_integers=True,
        inputs=("hidden_states", "timestep", "class_labels"),
    )


def example_inputs(diffusion: Diffusion, batch: int = 2) -> dict[str, Tensor]:
    """Keyword inputs: seeded noise, late and middle timesteps, the first classes."""
    noise = torch.randn(batch, *diffusion.sample_shape, generator=torch.Generator().manual_seed(0))
    index = torch.linspace(diffusion.length - 1, diffusion.length // 2, batch).long()
    return diffusion.network_inputs(noise, index, torch.arange(batch) % diffusion.classes)


def transformer_class() -> type[nn.Module]:
    try:
        from diffusers import DiTTransformer2DModel
    except ImportError as error:
        raise _not_installed(error) from error
    return DiTTransformer2DModel


def scheduler_class() -> type:
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise _not_installed(error) from error
    return DDPMScheduler


def _not_installed(error: ImportError) -> SurgeryError:
    return SurgeryError(
        f"reading `diffusers:` models needs diffusers: {error}",
        code="S206",
        help="pip install 'model-surgery[diffusion]'",
    )
