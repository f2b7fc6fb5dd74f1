"""A transformers class with the weights of its folder, or with none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fault, require_finite, weight_files

STEM = "model"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def unweighted(made: type, config: Any, dtype: torch.dtype, folder: Path) -> nn.Module:
    """The module on the meta device. Errors: S209 where the class cannot be built from the config."""
    try:
        with torch.device("meta"), quiet():
            return made._from_config(config, dtype=dtype, attn_implementation=attention(made)).eval()
    except Exception as error:  # whatever a model's constructor raises
        raise _unbuilt(error, made, folder) from error


def weighted(made: type, config: Any, dtype: torch.dtype, folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with its weights on the CPU, and what should be said of them.

    Errors: S201 missing, S205 pickles, S202 damaged, S203 of another model, S204 not finite.
    """
    weight_files(folder, STEM)
    try:
        with quiet():
            module, told = made.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention(made),
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (SafetensorError, OSError) as error:
        raise _unreadable(error, folder) from error
    except Exception as error:  # whatever a model's constructor raises
        raise _unbuilt(error, made, folder) from error
    _refuse_foreign(told, made, folder)
    require_finite(module.state_dict(), f"hf:{folder}")
    return module.eval(), _left_over(told, made)


def dtype_of(document: dict[str, Any], folder: Path) -> torch.dtype:
    """As config.json says, else as the first tensor of floats in the checkpoint is, else float32."""
    named = document.get("dtype") or document.get("torch_dtype")
    found = getattr(torch, str(named).removeprefix("torch."), None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    for path in sorted(folder.glob(f"{STEM}*.safetensors")):
        found = _first_dtype(path)
        if found is not None:
            return found
    return torch.float32


def attention(made: type) -> str:
    """Said here, so that a config.json cannot ask for a kernel from the hub, which is code."""
    return "sdpa" if getattr(made, "_supports_sdpa", False) else "eager"


@contextmanager
def quiet() -> Iterator[None]:
    """transformers draws bars and warns of what is refused or told below."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before[0])
        if before[1]:
            logging.enable_progress_bar()


def _first_dtype(path: Path) -> torch.dtype | None:
    """Of a damaged file None: reading its weights will say what is wrong."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                found = DTYPES.get(file.get_slice(name).get_dtype())
                if found is not None:
                    return found
    except (SafetensorError, OSError):
        return None
    return None


def _refuse_foreign(told: Any, made: type, folder: Path) -> None:
    shapes = [f"{name} {list(there)}, the model has {list(here)}" for name, there, here in told["mismatched_keys"]]
    faults = [*fault("missing", sorted(told["missing_keys"])), *fault("of another shape", sorted(shapes))]
    if faults:
        raise SurgeryError(
            f"the checkpoint does not fit the {made.__name__} of `hf:{folder}`",
            code="S203",
            notes=(*faults, *fault("unexpected", sorted(told["unexpected_keys"]))),
            help="`architectures` in its config.json names the class that saved it; sizes stand there as well",
        )


def _left_over(told: Any, made: type) -> tuple[str, ...]:
    notes = fault("tensors of the checkpoint have no place in the model", sorted(told["unexpected_keys"]))
    return tuple(f"{note} ({made.__name__})" for note in notes)


def _unreadable(error: Exception, folder: Path) -> SurgeryError:
    sizes = [f"{path.name} has {path.stat().st_size:,} bytes" for path in weight_files(folder, STEM)]
    return SurgeryError(
        f"the checkpoint of `hf:{folder}` cannot be read as safetensors: {error}",
        code="S202",
        notes=sizes,
        help="it was cut off or is of another format: download or save it again",
    )


def _unbuilt(error: Exception, made: type, folder: Path) -> SurgeryError:
    return SurgeryError(
        f"transformers cannot build the {made.__name__} of `{folder}`: {type(error).__name__}: {error}",
        code="S209",
        help="its config.json was edited, or written by another version of transformers",
    )
