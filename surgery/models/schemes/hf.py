"""`hf:PATH` or `hf:ORG/NAME`: a model that Hugging Face's transformers saved, read with transformers' own class.

Which class and which task follow from config.json through transformers' Auto mappings. Weights are safetensors; code
beside a checkpoint is never run.
"""

import torch

from surgery.models.checkpoint import fingerprint, weight_files
from surgery.models.huggingface.architecture import class_of, read_as_config
from surgery.models.huggingface.examples import example_inputs
from surgery.models.huggingface.folder import files_beside, located, read_config
from surgery.models.huggingface.weights import STEM, dtype_of, unweighted, weighted
from surgery.models.loaded import LoadedModel


def load(location: str, *, weights: bool = True, dtype: torch.dtype | None = None) -> LoadedModel:
    """The model in `dtype`, or that of its files, without a cache of keys and values; on meta without `weights`.

    Errors: S201 missing, S206 transformers not installed, S209 a config that cannot be served, S202..S205 bad weights.
    """
    folder = located(location, weights=weights)
    document = read_config(folder)
    config = read_as_config(document, folder)
    made, task = class_of(config, document.get("architectures"), folder)
    dtype = dtype or dtype_of(document, folder)
    document["dtype"] = str(dtype).removeprefix("torch.")
    inputs = example_inputs(made, config, dtype, folder)
    config.use_cache = False
    notes, files = (), {}
    if weights:
        module, notes = weighted(made, config, dtype, folder)
        read = [folder / "config.json", *weight_files(folder, STEM)]
        files = {path.name: fingerprint(path) for path in read}
    else:
        module = unweighted(made, config, dtype, folder)
    source = {
        "library": "transformers",
        "config": document,
        "architecture": made.__name__,
        "task": task,
        "tokenizer_files": files_beside(folder),
    }
    return LoadedModel(f"hf:{location}", module, inputs, files=files, source=source, notes=notes)
