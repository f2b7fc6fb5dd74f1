"""Example inputs of a transformers model, from its signature and its config."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError

BATCH, LENGTH, TARGET = 2, 12, 10
SIZE = 224


def example_inputs(made: type, config: Any, dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    """Keyword inputs with batch 2: tokens and their attention mask, decoder tokens, pixels; seeded.

    Errors: S209 for a model that takes none of them.
    """
    takes = inspect.signature(made.forward).parameters
    main = getattr(made, "main_input_name", "input_ids")
    inputs: dict[str, Tensor] = {}
    if main == "input_ids":
        inputs = _tokens(takes, config)
    if main == "pixel_values" or (inputs and _sees(takes, made)):
        inputs["pixel_values"] = _pixels(config, dtype)
    if not inputs:
        raise SurgeryError(
            f"`{folder}` holds a {made.__name__}, whose input is `{main}`: only text and images are read",
            code="S209",
            help="from Python, pass the module and its example inputs to `surgery.compile`",
        )
    order = list(takes)
    return {name: inputs[name] for name in sorted(inputs, key=order.index)}


def _tokens(takes: Any, config: Any) -> dict[str, Tensor]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = min(LENGTH, positions(config.to_dict()) or LENGTH)
    inputs = {"input_ids": _ids(text, length, seed=0)}
    if "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones(BATCH, length, dtype=torch.long)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = _ids(text, min(TARGET, length), seed=1)
    return inputs


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that the position table of a config.json's model holds; None where none is told.

    Tables that keep rows for padding hold two tokens less than they say; so nobody is promised the last two.
    """
    text = config.get("text_config") or config
    told = text.get("max_position_embeddings") or text.get("n_positions")
    return told if isinstance(told, int) else None


def _ids(config: Any, length: int, seed: int) -> Tensor:
    """Tokens [2, length], none of them special: positions and sentence ends are counted by those."""
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
    usual = [token for token in range(getattr(config, "vocab_size", 2)) if token not in special][:1000]
    chance = torch.Generator().manual_seed(seed)
    return torch.tensor(usual)[torch.randint(len(usual), (BATCH, length), generator=chance)]


def _sees(takes: Any, made: type) -> bool:
    """Whether a model of text needs an image as well, as one that compares both does."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as both

    return "pixel_values" in takes and made.__name__ in both.values()


def _pixels(config: Any, dtype: torch.dtype) -> Tensor:
    seen = getattr(config, "vision_config", None) or config
    size = getattr(seen, "image_size", None) or SIZE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    shape = (BATCH, getattr(seen, "num_channels", None) or 3, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
