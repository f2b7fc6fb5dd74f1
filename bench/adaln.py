"""adaLN modulation, pruned against dense: `python -m bench.adaln [--quick] [--json]`.

Every block of a diffusion transformer computes `linear(silu(c))`, [B, D] → [B, 6D], from the same c. Pruning c to
K of its D coordinates leaves every weight K of its D columns. Ours is the pruned one, in five ways:

    per block                 `surgery::modulation` per block, silu inside (CPU: its weight laid out once)
    hoisted                   the same as one call over the weights of all blocks, [B, K] → [B, depth · 6D]
    per block, plain linear   PyTorch's own linear per block, as the model does it
    hoisted, plain linear     PyTorch's own linear over the weights of all blocks
    hoisted, packed linear    the same, its weight laid out once in oneDNN's own blocks (CPU only)

The like-for-like peer is dense as one runs it without surgery, a linear per block or one for all; the other dense
ways are beside it: `torch.compile` over the blocks, oneDNN's packing, and dense through surgery's own kernel, which
shows how much of a ratio is the kernel and how much the cut. Batch 1 reads every weight for one row: memory decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from surgery.kernels.operators.modulation import modulation as surgery_modulation
from surgery.kernels.operators.modulation import pack_modulation, packed_modulation
from torch import Tensor
from torch.nn.functional import linear, silu

from bench.harness import Case, Options, Scene, main

SIZES = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}
"""DiT's widths and depths."""

WAYS = {
    "per block": "per block surgery",
    "hoisted": "hoisted surgery",
    "per block, plain linear": "per block",
    "hoisted, plain linear": "hoisted",
    "hoisted, packed linear": "hoisted packed",
}
"""How a row names a pruned way → how a peer names the same way of running dense."""

KEPT = (0.20, 0.34, 0.62)
ROUNDED = 32
"""A kept width rounded up to a multiple of this fills oneDNN's blocks."""


@dataclass(frozen=True)
class Modulation:
    """The modulation of all blocks: c [B, K], one weight [depth · 6D, K] whose row slices are the blocks'."""

    c: Tensor
    weight: Tensor
    bias: Tensor
    depth: int

    def per_block(self) -> Callable[[], list[Tensor]]:
        pairs = list(zip(self.weight.chunk(self.depth), self.bias.chunk(self.depth), strict=True))
        return lambda: [linear(silu(self.c), weight, bias) for weight, bias in pairs]

    def hoisted(self) -> Callable[[], Tensor]:
        return lambda: linear(silu(self.c), self.weight, self.bias)

    def packed(self) -> Callable[[], Tensor]:
        weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.c.shape[0])
        return lambda: torch.ops.mkldnn._linear_pointwise(silu(self.c), weight, self.bias, "none", [], "")

    def surgery_per_block(self) -> Callable[[], list[Tensor]]:
        weights, biases = self.weight.chunk(self.depth), self.bias.chunk(self.depth)
        calls = [surgery_call(self.c, *pair) for pair in zip(weights, biases, strict=True)]
        return lambda: [call() for call in calls]

    def surgery_hoisted(self) -> Callable[[], Tensor]:
        return surgery_call(self.c, self.weight, self.bias)

    def compiled(self) -> Callable[[], Any]:
        """`torch.compile` over all blocks, static shapes, weights as inputs."""
        weights, biases = self.weight.chunk(self.depth), self.bias.chunk(self.depth)

        def every_block(c: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]) -> list[Tensor]:
            return [linear(silu(c), weight, bias) for weight, bias in zip(weights, biases, strict=True)]

        function = torch.compile(every_block, dynamic=False)
        return lambda: function(self.c, weights, biases)

    def ways(self, packing: bool) -> dict[str, Callable[[], Any]]:
        ways = {"per block": self.per_block(), "hoisted": self.hoisted()}
        if packing:
            ways["hoisted packed"] = self.packed()
        return ways | {"per block surgery": self.surgery_per_block(), "hoisted surgery": self.surgery_hoisted()}


def surgery_call(c: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """One call of our operator; on a CPU the weight is laid out now."""
    if c.device.type != "cpu":
        return lambda: surgery_modulation(c, weight, bias)
    packed, outputs = pack_modulation(weight), weight.shape[0]
    return lambda: packed_modulation(c, packed, bias, outputs)


def modulation(width: int, kept: int, depth: int, batch: int, dtype: torch.dtype, device: str) -> Modulation:
    """Random weights and input of the given sizes, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = depth * 6 * width
        weight = torch.empty(rows, kept, dtype=dtype, device=device).uniform_(-1, 1).div_(kept**0.5)
        bias = torch.zeros(rows, dtype=dtype, device=device)
        return Modulation(torch.randn(batch, kept).to(device, dtype), weight, bias, depth)


def scene(size: str, batch: int, dtype: torch.dtype, shares: tuple[float, ...], device: str) -> Scene:
    """Dense and every pruned width of one model size, all measured in the same rounds."""
    width, depth = SIZES[size]
    title = f"DiT-{size} ({width} wide, {depth} blocks), {str(dtype).removeprefix('torch.')}, batch {batch}"
    packing = device == "cpu" and torch.backends.mkldnn.is_available()
    dense = modulation(width, width, depth, batch, dtype, device)
    candidates = {f"dense {way}": run for way, run in dense.ways(packing).items()}
    candidates["dense per block compiled"] = dense.compiled()
    peers = tuple(candidates)
    cases = []
    for label, kept in widths(width, shares):
        pruned = modulation(width, kept, depth, batch, dtype, device)
        runs = pruned.ways(packing)
        for way, same in WAYS.items():
            if same not in runs:
                continue
            row = f"{label} kept, {way}"
            candidates[row] = runs[same]
            facts = {"size": size, "dtype": str(dtype), "batch": batch, "width": width, "kept": kept, "way": way}
            facts |= {"like_for_like": f"dense {same.removesuffix(' surgery')}", "same_kernel": f"dense {same}"}
            facts["drawn"] = dtype == torch.bfloat16 and label == exact(0.34, width) and same.endswith("surgery")
            cases.append(Case(f"{title}, {row}", row, row, peers, facts, *work(pruned)))
    return Scene(title, candidates, tuple(cases))


def work(made: Modulation) -> tuple[float, float]:
    """Multiplications and additions, and bytes of weight, bias, input and output, each moved once."""
    (batch, kept), outputs = made.c.shape, made.weight.shape[0]
    numbers = made.weight.numel() + outputs + batch * (kept + outputs)
    return 2.0 * batch * kept * outputs, float(numbers * made.c.element_size())


def exact(share: float, width: int) -> str:
    """The label of a share that is not rounded up."""
    return f"{share:.0%} ({round(width * share)})"


def widths(width: int, shares: tuple[float, ...]) -> Iterator[tuple[str, int]]:
    """Label and kept width of each share, and of 34 % also the width rounded up to fill blocks."""
    for share in shares:
        yield exact(share, width), round(width * share)
        if share == 0.34:
            rounded = -(-round(width * share) // ROUNDED) * ROUNDED
            yield f"{share:.0%} ({rounded}, a multiple of {ROUNDED})", rounded


def scenes(asked: Options) -> Iterator[Scene]:
    sizes, batches = (("S", "XL"), (8, 32)) if asked.quick else (tuple(SIZES), (1, 8, 32))
    dtypes = (torch.bfloat16,) if asked.quick else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        for size in sizes:
            for batch in batches:
                torch.compiler.reset()
                yield scene(size, batch, dtype, (0.34,) if asked.quick else KEPT, asked.device)


if __name__ == "__main__":
    raise SystemExit(main("adaln", scenes))
