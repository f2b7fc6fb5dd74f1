"""What this device can do at best, measured: memory bandwidth and matrix products, and what share of it a case reached."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from surgery.interleave import interleaved

STREAM_BYTES = 256 << 20
PRODUCT = 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ceiling:
    """Best measured rates: bytes/s of a copy (read and written), FLOP/s of a square matrix product."""

    bytes_per_s: float
    flops_per_s: float

    def seconds(self, flops: float, moved: float) -> tuple[float, str]:
        """The least time that much work can take, and what bounds it."""
        compute, memory = flops / self.flops_per_s, moved / self.bytes_per_s
        return (compute, "compute") if compute >= memory else (memory, "memory")


@functools.cache
def ceiling(dtype: str, device: str, clock: str) -> Ceiling:
    """The ceilings of a dtype (`fp32`, `bf16`, `fp16`) at the threads and on the clock in force."""
    best = functools.partial(fastest, device=device, clock=clock)
    flops = 2 * PRODUCT**3 / best(products(DTYPES[dtype], device))
    source = torch.ones(STREAM_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return Ceiling(2 * STREAM_BYTES / best({"copy": lambda: target.copy_(source)}), flops)


def fastest(candidates: dict[str, Callable[[], Any]], device: str, clock: str) -> float:
    """Seconds of the fastest round of the fastest candidate."""
    times = interleaved(candidates, runs=7, warmup=2, budget_s=4, device=device, clock=clock)
    return min(min(timing.samples_ms) for timing in times.values()) / 1e3


def products(dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    """Square products: as `linear` runs them, and on a CPU with the weight packed by oneDNN."""
    x = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    weight = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    found = {"linear": lambda: torch.nn.functional.linear(x, weight)}
    if device == "cpu" and torch.backends.mkldnn.is_available() and dtype != torch.float16:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PRODUCT)
        found["packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return found
