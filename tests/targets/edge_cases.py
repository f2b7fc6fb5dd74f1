"""Models and specs for sparse attention without training: small, of several libraries' architectures."""

from pathlib import Path
from typing import Any

import saved
import torch

TEXT = saved.TEXT | {"max_position_embeddings": 128}
MORE = saved.TEXT | saved.ENDS | {"max_position_embeddings": 128, "num_key_value_heads": 2}
KINDS = {
    "gpt2": saved.KINDS["gpt2"][:2] + (saved.GPT2 | saved.ENDS | {"n_positions": 128}, "causal-lm"),
    "llama": saved.KINDS["llama"][:2] + (MORE, "causal-lm"),
    "mistral": ("MistralForCausalLM", "MistralConfig", MORE | {"sliding_window": 24, "head_dim": 4}, "causal-lm"),
    "bert": saved.KINDS["bert-masked"][:2] + (TEXT, "masked-lm"),
    "vit": saved.KINDS["vit"][:2] + (saved.SEEN | {"image_size": 32}, "classification"),
}
LENGTH = 48


def folder(kind: str, root: Path, **options: Any) -> Path:
    """The folder of a model of this kind, made once."""
    found = root / f"{kind}-{str(options.get('dtype', torch.float32)).removeprefix('torch.')}"
    if not found.exists():
        saved.KINDS[f"edges-{kind}"] = KINDS[kind]
        saved.save(f"edges-{kind}", found, **options)
    return found


def corpus(root: Path) -> Path:
    path = root / "corpus.txt"
    return path if path.exists() else saved.corpus(path, lines=300)


def spec(root: Path, kind: str, *clauses: str, **options: Any) -> Path:
    """A spec in the folder `root`; its data is 12 rows to measure on and 12 to calibrate on."""
    data = f'data text:"{corpus(root)}" length={LENGTH} samples=24'
    path = root / f"{kind}.surgery"
    path.write_text("\n".join([f"model hf:{folder(kind, root, **options)}", data, *clauses]) + "\n")
    return path


def of(report: dict[str, Any]) -> dict[str, Any]:
    """The finding of its edges."""
    return next(found for found in report["findings"] if found["kind"] == "edges")
