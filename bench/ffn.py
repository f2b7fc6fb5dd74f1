"""A feed-forward over listed blocks of channels against the whole: `python -m bench.ffn [--quick] [--json]`.

    dense           two or three linear layers, eager
    dense-compiled  the same through torch.compile with frozen weights, which lays them out anew
    dense-packed    the same with weights laid out once in oneDNN's own blocks (CPU only)

Ours is the public `gathered_ffn`: it reads the list, checks it, and computes all channels where that was faster (the share
it keeps then only says what is set to zero). `routed` has `probe_select` in its time too. Batch 1 reads every kept weight
for one row: memory decides.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from surgery.kernels.operators.gathered_ffn import FeedForward, gathered_ffn
from surgery.kernels.operators.probe_select import matched_dictionary, probe_select
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.harness import Case, Options, Scene, main

WIDTH, CHANNELS, BLOCK, PROBES = 2048, 8192, 64, 32
SHARES = (1.0, 0.5, 0.35, 0.25, 0.1, 0.03)
ROUTED = (0.25, 0.1)
KINDS = {"silu-gated": ("silu", True), "gelu": ("gelu", False), "relu2": ("relu2", False)}
BATCHES = (1, 4, 16, 64)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Dense(nn.Module):
    """The whole feed-forward, as a model has it."""

    def __init__(self, weights: FeedForward):
        super().__init__()
        self.up, self.down = nn.Parameter(weights.up, False), nn.Parameter(weights.down, False)
        self.gate = None if weights.gate is None else nn.Parameter(weights.gate, False)
        self.act = ACTIVATIONS[weights.activation]

    def forward(self, x: Tensor) -> Tensor:
        up = linear(x, self.up)
        return linear(self.act(up) if self.gate is None else self.act(linear(x, self.gate)) * up, self.down)


def compiled(dense: Dense, x: Tensor) -> Callable[[], Tensor]:
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=True, compile_threads=1):
        function = torch.compile(dense, dynamic=False)
        function(x)
    return lambda: function(x)


def packed(weights: FeedForward, x: Tensor) -> Callable[[], Tensor]:
    rows = x.shape[0]
    laid_out = [
        None if each is None else torch.ops.mkldnn._reorder_linear_weight(each, rows)
        for each in (weights.up, weights.gate, weights.down)
    ]
    up, gate, down = laid_out
    act = ACTIVATIONS[weights.activation]

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    def run() -> Tensor:
        hidden = product(x, up)
        return product(act(hidden) if gate is None else act(product(x, gate)) * hidden, down)

    return run


def layer(activation: str, gated: bool, dtype: torch.dtype, device: str) -> FeedForward:
    """Random weights, the same at each call, with down by rows too."""
    generator = torch.Generator().manual_seed(0)

    def made(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(device, dtype)

    gate = made(CHANNELS, WIDTH) if gated else None
    return FeedForward(made(CHANNELS, WIDTH), made(WIDTH, CHANNELS), gate, activation=activation).with_rows()


def listed(share: float, device: str) -> Tensor:
    """Random blocks, sorted."""
    total = CHANNELS // BLOCK
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1))
    return order[: max(1, round(total * share))].sort().values.to(device, torch.int32)


def gathered(x: Tensor, weights: FeedForward, blocks: Tensor) -> Callable[[], Tensor]:
    on_gpu = x.is_cuda
    return lambda: gathered_ffn(x, weights, blocks, block=BLOCK, check=not on_gpu)


def routed(x: Tensor, weights: FeedForward, keep: int) -> Callable[[], Tensor]:
    probes = torch.randn(PROBES, WIDTH, generator=torch.Generator().manual_seed(2)).to(x.device)
    dictionary = matched_dictionary(probes, (weights.up if weights.gate is None else weights.gate).float(), BLOCK)

    def run() -> Tensor:
        blocks, _ = probe_select(x, probes, dictionary, keep, shared=True)
        return gathered_ffn(x, weights, blocks[0], block=BLOCK, check=False)

    return run


def name_of(label: str, batch: int, kind: str, dtype: torch.dtype) -> str:
    return f"ffn {label} d={WIDTH} f={CHANNELS} batch={batch} {kind} {NAMES[dtype]}"


def labels(batch: int) -> Iterator[tuple[str, float, bool]]:
    """Label, share, and whether routing is part of it."""
    for share in SHARES:
        yield f"kept={share:.0%}", share, False
        if batch == 1 and share in ROUTED:
            yield f"kept={share:.0%} routed", share, True


def scene(kind: str, dtype: torch.dtype, batch: int, asked: Options) -> Scene:
    """One layer and batch: the dense ways and every share, measured in the same rounds."""
    torch.compiler.reset()
    activation, gated = KINDS[kind]
    weights = layer(activation, gated, dtype, asked.device)
    x = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(3)).to(asked.device, dtype)
    dense = Dense(weights).eval()
    candidates: dict[str, Callable[[], Any]] = {"dense": lambda: dense(x)}
    if asked.wants("dense-compiled"):
        candidates["dense-compiled"] = compiled(dense, x)
    if asked.wants("dense-packed") and asked.device == "cpu" and torch.backends.mkldnn.is_available():
        candidates["dense-packed"] = packed(weights, x)
    peers, cases, weights = tuple(candidates), [], weights.with_packed(batch)
    for label, share, with_routing in labels(batch):
        blocks = listed(share, asked.device)
        keep = blocks.numel()
        candidates[label] = routed(x, weights, keep) if with_routing else gathered(x, weights, blocks)
        cells = (3 if gated else 2) * WIDTH * keep * BLOCK
        facts = {"dtype": NAMES[dtype], "batch": batch, "kind": kind, "share": share, "block": BLOCK}
        size = cells * x.element_size()
        name = name_of(label, batch, kind, dtype)
        cases.append(Case(name, label, label, peers, facts, flops=2 * batch * cells, bytes=size))
    title = f"{kind} feed-forward {WIDTH} → {CHANNELS} → {WIDTH}, {NAMES[dtype]}, batch {batch}"
    return Scene(title, candidates, tuple(cases))


def scenes(asked: Options) -> Iterator[Scene]:
    kinds = ("silu-gated",) if asked.quick else tuple(KINDS)
    dtypes = (torch.float32,) if asked.quick else (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        for kind in kinds:
            for batch in (1,) if asked.quick else BATCHES:
                if any(asked.only in name_of(label, batch, kind, dtype) for label, *_ in labels(batch)):
                    yield scene(kind, dtype, batch, asked)


if __name__ == "__main__":
    raise SystemExit(main("ffn", scenes))
