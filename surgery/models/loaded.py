"""A model as every later stage sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.models.diffusion import Diffusion


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode and what is known of it.

    example_inputs  keyword tensors of a forward pass with batch 2, or a tuple of positional ones
    diffusion       how it is sampled from, for a class-conditional diffusion model
    files           sha256 of every file that was read, by file name; empty without weights
    default_data    the data reference that fits where a spec names none
    source          of a library's own model: `library`, `config` (its config.json), `architecture` (the class's name),
                    `task` (as in `Data`), `tokenizer_files` (name: bytes); empty for any other
    notes           what a plan and a report should say of the opening
    """

    reference: str
    module: nn.Module
    example_inputs: dict[str, Tensor] | tuple[Tensor, ...]
    diffusion: Diffusion | None = None
    files: dict[str, str] = field(default_factory=dict)
    default_data: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def converted(self, dtype: torch.dtype) -> "LoadedModel":
        """The same with weights and example inputs of floats in another dtype; the module itself is converted."""
        inputs = pytree.tree_map_only(Tensor, lambda value: _cast(value, dtype), self.example_inputs)
        return replace(self, module=self.module.to(dtype), example_inputs=inputs)

    def on(self, device: torch.device) -> "LoadedModel":
        """The same with weights and example inputs on another device; the module itself is moved."""
        inputs = pytree.tree_map_only(Tensor, lambda value: value.to(device), self.example_inputs)
        return replace(self, module=self.module.to(device), example_inputs=inputs)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
