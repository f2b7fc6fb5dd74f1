"""Models by reference: `zoo:NAME`, `hf:PATH`, `diffusers:PATH`, a saved bundle, `module.path:factory`."""

from surgery.models.diffusion import Diffusion
from surgery.models.loaded import LoadedModel
from surgery.models.reference import open_model, schemes

__all__ = ["Diffusion", "LoadedModel", "open_model", "schemes"]
