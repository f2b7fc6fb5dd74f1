"""`zoo:NAME`: a small trained model that ships with the package."""

import torch

from surgery import zoo
from surgery.models.checkpoint import fingerprint, fit, read_tensors
from surgery.models.loaded import LoadedModel


def load(location: str, *, weights: bool = True) -> LoadedModel:
    """Errors: S201 for an unknown name, S202..S204 for damaged weights."""
    recipe = zoo.entry(location)
    with torch.device("cpu" if weights else "meta"):
        module = recipe.build().eval()
    files = {}
    if weights:
        path = zoo.weights_file(location)
        fit(module, read_tensors(path), f"zoo:{location}")
        files[path.name] = fingerprint(path)
    return LoadedModel(
        f"zoo:{location}",
        module,
        recipe.example_inputs(),
        recipe.diffusion(),
        files,
        default_data=recipe.default_data,
        source=recipe.source(),
    )
