"""Write sample.json: an illustrative report whose embeddings finding is computed, its other numbers typical.

python tests/report/make_sample.py
"""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from surgery.analyses.embeddings import analyze_embeddings
from surgery.report.document import REPORT_FORMAT

WIDTH, KEPT, DEPTH, CLASSES, STEPS = 96, 33, 8, 10, 100
CLAUSE, PLACE = "prune tail 66% of class embeddings", "quickstart.surgery:4:1"
SPEC = """\
# two thirds of the conditional vector go, the samples stay
model zoo:digits-dit
data digits
prune tail 66% of class embeddings
require accuracy >= 0.95
require frechet <= 1.05x
"""
METRICS = ("accuracy", "frechet", "denoising loss", "paired error")
CONTROLS = {
    "per-vector |c| tail, masked (the paper's)": (0.9335, 0.7212, 0.0689, 0.0412),
    "shared |c| tail, masked": (0.7230, 1.8220, 0.0815, 0.1120),
    "shared |c| tail + least-squares": (0.9785, 0.5121, 0.0651, 0.0031),
    "shared |SiLU c| tail, masked": (0.9150, 0.8210, 0.0701, 0.0502),
    "head, masked": (0.0950, 6.4100, 0.3120, 0.6120),
    "random, seed 0": (0.1720, 4.1600, 0.1890, 0.3310),
    "random, seed 1": (0.2140, 3.8700, 0.1720, 0.3120),
    "random, seed 2": (0.1110, 5.0200, 0.2210, 0.4010),
    "random, seed 3": (0.1560, 4.3100, 0.1950, 0.3550),
    "random, seed 4": (0.2460, 3.4400, 0.1610, 0.2840),
}
CRITERIA = (
    ("greedy", "least-squares", 0.0012, True),
    ("effect", "least-squares", 0.0068, False),
    ("activation", "least-squares", 0.0091, False),
    ("magnitude", "least-squares", 0.0144, False),
    ("effect", "none", 0.121, False),
    ("activation", "none", 0.148, False),
    ("magnitude", "none", 0.317, False),
)
TIMES = (("eager", 1, 4.42, 4.35), ("eager", 32, 15.9, 14.1), ("compiled", 1, 1.93, 1.61), ("compiled", 32, 10.6, 9.1))


def build() -> dict:
    time, classes, consumers = _embeddings()
    kept = _greedy(time, classes, consumers)
    finding = analyze_embeddings(
        time,
        classes,
        timesteps=torch.arange(STEPS - 1, -1, -1),
        null_row=CLASSES,
        kept=kept,
        consumer_norms=consumers.norm(dim=0),
    )
    return {
        "format": REPORT_FORMAT,
        "version": "0.1.0",
        "model": {"reference": "zoo:digits-dit", "fingerprint": "sha256:" + "3f9a" * 16, "files": _files()},
        "spec": SPEC,
        "seed": 0,
        "device": {"name": "x86_64 CPU, AVX-512", "threads": 2, "torch": "2.13.0", "dtype": "float32"},
        "selectors": [
            {
                "text": "class embeddings",
                "place": "quickstart.surgery:4:19",
                "matched": ["conditioning: t_embedder + y_embedder → 9 modulation layers"],
            }
        ],
        "actions": [_action(kept)],
        "criteria": [dict(zip(("by", "compensate", "error", "chosen"), row, strict=True)) for row in CRITERIA],
        "parity": [_parity("float32", 2, 4.8e-7, 1e-5), _parity("float32", 7, 7.2e-7, 1e-5)]
        + [_parity("bfloat16", 2, 7.8e-3, 3.2e-2)],
        "quality": _quality(),
        "controls": [
            {"name": name, "metrics": dict(zip(METRICS, values, strict=True))} for name, values in CONTROLS.items()
        ],
        "size": {
            "parameters": {"before": 1_345_680, "after": 994_512},
            "bytes": {"before": 5_382_720, "after": 3_978_048},
            "flops": {"before": 33_410_000, "after": 32_710_000},
        },
        "latency": [_latency(*row) for row in TIMES],
        "memory": {
            "batch": 32,
            "before": 14_200_000,
            "after": 12_800_000,
            "what": "peak of live tensors in a forward pass, parameters included",
        },
        "requirements": [
            _requirement("require accuracy >= 0.95", 5, 0.9815, 0.95),
            _requirement("require frechet <= 1.05x", 6, 1.003, 1.05),
        ],
        "findings": [finding, _samples()],
        "bundle": "build/quickstart",
    }


def _embeddings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A smooth, heavy-tailed time embedding, long beside the class embeddings, and 6 × 96 rows read by each block."""
    generator = torch.Generator().manual_seed(0)
    phase = torch.linspace(0, 1, STEPS, dtype=torch.float64).flip(0)[:, None] * torch.tensor([0.5, 1.0, 2.0, 3.0])
    features = torch.cat([phase.mul(3.14159).cos(), phase.mul(3.14159).sin()], -1)
    mix = torch.randn(8, WIDTH, generator=generator, dtype=torch.float64)
    scale = torch.randn(WIDTH, generator=generator, dtype=torch.float64).mul(0.9).exp() * 0.22
    time = features @ mix * scale
    classes = torch.randn(CLASSES + 1, WIDTH, generator=generator, dtype=torch.float64) * scale.sqrt() * 0.18
    consumers = torch.randn(DEPTH * 6 * WIDTH, WIDTH, generator=generator, dtype=torch.float64) * 0.05
    return time, classes, consumers


def _greedy(time: torch.Tensor, classes: torch.Tensor, consumers: torch.Tensor) -> torch.Tensor:
    """Pivoted Gram-Schmidt on the activated grid, each column weighted by the norm of its consumers."""
    grid = torch.nn.functional.silu(time[:, None] + classes).flatten(0, 1) * consumers.norm(dim=0)
    residual, kept = grid - grid.mean(0), []
    for _ in range(KEPT):
        best = int((residual.T @ residual).square().sum(0).div(residual.square().sum(0).clamp(min=1e-18)).argmax())
        kept.append(best)
        column = residual[:, best] / residual[:, best].norm()
        residual = residual - column[:, None] * (column @ residual)
    return torch.tensor(sorted(kept))


def _files() -> dict:
    return {"model.safetensors": "b81c" * 16, "config.json": "07de" * 16}


def _action(kept: torch.Tensor) -> dict:
    names = [(f"blocks.{i}.adaLN_modulation.1.weight", 6 * WIDTH) for i in range(DEPTH)]
    names.append(("final_layer.adaLN_modulation.1.weight", 2 * WIDTH))
    tensors = [{"name": name, "before": [rows, WIDTH], "after": [rows, KEPT]} for name, rows in names]
    tensors.append({"name": "t_embedder.mlp.2.weight", "before": [WIDTH, WIDTH], "after": [KEPT, WIDTH]})
    tensors.append({"name": "t_embedder.mlp.2.bias", "before": [WIDTH], "after": [KEPT]})
    table = {"name": "y_embedder.embedding_table.weight", "before": [11, WIDTH], "after": [11, KEPT]}
    choice = {"by": "greedy", "scope": "shared", "when": "every", "compensate": "least-squares", "kept": kept.tolist()}
    return {
        "clause": CLAUSE,
        "place": PLACE,
        "operation": "prune",
        "site": "conditioning",
        "kind": "conditioning",
        "before": {"width": WIDTH},
        "after": {"width": KEPT},
        "tensors": [*tensors, table],
        "saved": {"parameters": 309_204, "bytes": 1_236_816, "flops": 700_000},
        "notes": ["66% of 96 is 63.36: 63 removed"],
        "choice": choice,
    }


def _parity(dtype: str, batch: int, error: float, tolerance: float) -> dict:
    why = {"float32": "sums of other lengths round differently", "bfloat16": "8 bits of mantissa, 9 layers"}[dtype]
    return {
        "what": "masked == compacted",
        "dtype": dtype,
        "batch": batch,
        "max_abs": error,
        "max_rel": 4 * error,
        "tolerance": tolerance,
        "why": why,
        "holds": True,
    }


def _quality() -> list[dict]:
    data = "digits: 2000 samples, 25 DDIM steps, seed 0"
    rows = (
        ("accuracy", 0.982, 0.9815, "higher", 0.003),
        ("frechet", 0.5031, 0.5046, "lower", None),
        ("denoising loss", 0.0648, 0.0649, "lower", None),
        ("paired error", 0, 0.0014, "lower", None),
    )
    keys = ("metric", "before", "after", "better", "spread")
    return [dict(zip(keys, row, strict=True), data=data) for row in rows]


def _latency(mode: str, batch: int, before: float, after: float) -> dict:
    ratio = round(before / after, 4)
    return {"mode": mode, "batch": batch, "before_ms": before, "after_ms": after, "ratio": ratio, "runs": 30}


def _requirement(text: str, line: int, measured: float, limit: float) -> dict:
    return {
        "text": text,
        "place": f"quickstart.surgery:{line}:1",
        "measured": measured,
        "limit": limit,
        "holds": True,
    }


def _samples() -> dict:
    digits = load_digits()
    rows = [index for label in range(CLASSES) for index in (digits.target == label).nonzero()[0][:8]]
    images = torch.from_numpy(digits.images[rows]).mul(255 / 16)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).mul(9)
    after = (images + noise).clamp(0, 255)
    return {
        "kind": "samples",
        "labels": digits.target[rows].tolist(),
        "before": images.round().to(torch.uint8).tolist(),
        "after": after.round().to(torch.uint8).tolist(),
    }


if __name__ == "__main__":
    target = Path(__file__).with_name("sample.json")
    target.write_text(json.dumps(build(), separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
