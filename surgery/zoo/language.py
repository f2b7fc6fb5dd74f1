"""The recipe of a decoder on one of the zoo's own languages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from surgery.zoo.recipe import Training

UNSCORED = -100


class Rows(Protocol):
    """Everything there is to train on."""

    def draw(self, count: int, chance: Generator) -> tuple[Tensor, Tensor]:
        """Inputs [count, T] int64 and targets [count, T]: the next token, -100 where none counts."""


class Language(Protocol):
    """What a decoder learns to write; a module such as `surgery.zoo.tasks`."""

    def training(self) -> Rows:
        """What batches are drawn from."""

    def vocabulary_size(self) -> int:
        """How many tokens there are."""

    def tokenizer_files(self) -> dict[str, bytes]:
        """What transformers reads the tokenizer from, by file name."""


@dataclass(frozen=True)
class Writer:
    """Learns to name the next token wherever that is scored.

    half   multiply in bfloat16 while training, where it counts; weights and the optimizer's moments stay float32
    """

    name: str
    summary: str
    language: Language
    training: Training
    default_data: str
    network: Mapping[str, int | float] = field(default_factory=dict)
    half: bool = False

    def build(self) -> nn.Module:
        from surgery.zoo.gpt import GPT

        return GPT(vocabulary=self.language.vocabulary_size(), **self.network)

    def diffusion(self) -> None:
        return None

    def training_data(self) -> Rows:
        return self.language.training()

    def loss(self, network: nn.Module, data: Rows, chance: Generator) -> Tensor:
        """Cross entropy in nats per scored token."""
        inputs, targets = data.draw(self.training.batch, chance)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.half):
            logits = network(inputs).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=UNSCORED)

    def example_inputs(self, batch: int = 2) -> dict[str, Tensor]:
        """Rows of twelve seeded tokens."""
        chance = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(self.language.vocabulary_size(), (batch, 12), generator=chance)}

    def source(self) -> dict[str, Any]:
        """As `LoadedModel.source`."""
        return {
            "library": "surgery",
            "architecture": "GPT",
            "config": {"vocab_size": self.language.vocabulary_size()},
            "task": "causal-lm",
            "tokenizer_files": self.language.tokenizer_files(),
        }
