"""Models whose inputs have changed: what they are fed, and how they are measured beside the original."""

from collections.abc import Iterator
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from surgery.anatomy.capture import Inputs
from surgery.models.tokenizer_cut import cut_files
from surgery.session.prepare import Prepared
from surgery.session.rewrite import Choices

MAPS = "vocabulary.safetensors"


def fed(prepared: Prepared, choices: Choices, inputs: Inputs) -> Inputs:
    """The original's inputs as the rewritten model takes them. The original takes them too: as other tokens."""
    for work, choice in _pairs(prepared, choices, "fed"):
        inputs = work.fed(choice, inputs)
    return inputs


def as_before(prepared: Prepared, choices: Choices, module: nn.Module) -> nn.Module:
    """The rewritten model with the original's inputs and outputs."""
    for work, choice in _pairs(prepared, choices, "as_before"):
        module = work.as_before(module, choice)
    return module


def files_of(prepared: Prepared, choices: Choices) -> dict[str, bytes]:
    """What a bundle holds beside its model: the tables from old ids to new and back, and the tokenizer cut with them.

    Errors: S214 for a tokenizer that cannot be cut.
    """
    tables: dict[str, Tensor] = {}
    files: dict[str, bytes] = {}
    for work, choice in _pairs(prepared, choices, "maps"):
        tables |= work.maps(choice)
        if work.options.ids == "new":
            files, _ = cut_files(prepared.model.source.get("tokenizer_files") or {}, choice.keep.tolist())
    return files | ({MAPS: safetensors.torch.save(tables)} if tables else {})


def _pairs(prepared: Prepared, choices: Choices, method: str) -> Iterator[tuple[Any, Any]]:
    for work, choice in zip(prepared.works, choices, strict=True):
        if hasattr(work, method) and choice is not None:
            yield work, choice
