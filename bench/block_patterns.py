"""Whole decoders under fixed patterns of attention: `python -m bench.block_patterns [--quick] [--json] [--out FILE]`.

A decoder shaped like zoo:code-gpt (6 layers × 6 heads × 32, rotary positions, ReLU² feed-forward, 2,048 tokens; random
weights, so its attention is close to even, the hardest case for mass and the same for speed) reads the source of the
standard library, byte by byte. `sparsify attention SHARE via blocks` chooses the patterns on other rows of it, and the
speed gate what each site runs as. Forward passes of the whole model at batch 1, the original and the sparse one, eager
and through torch.compile, are measured in turn. `kept` is the share of edges left, `mass` of attention.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import Case, Options, Scene, main

SIZES = {"vocabulary": 2048, "width": 192, "depth": 6, "heads": 6}
LENGTHS, QUICK_LENGTHS = (4096,), (4096,)
SHARES, QUICK_SHARES = ("75%", "85%", "90%", "95%"), ("85%",)
CLAUSE = "sparsify attention {share} via blocks block=64 keep=[sink, window]"
ROWS = 2
"""Of the data: as many to calibrate on as to measure on."""


def scenes(asked: Options) -> Iterator[Scene]:
    for length in QUICK_LENGTHS if asked.quick else LENGTHS:
        network, data = decoder(), rows(length)
        inputs = {"input_ids": data[:1]}
        compiled = torch.compile(network, dynamic=False)
        for share in QUICK_SHARES if asked.quick else SHARES:
            yield scene(length, share, network, compiled, data, inputs)


def scene(
    length: int, share: str, network: nn.Module, compiled: Callable, data: Tensor, inputs: dict[str, Tensor]
) -> Scene:
    """Four ways to the logits: the dense model and the sparse one, eager and compiled."""
    sparse, found = sparsified(network, data, share)
    quick = torch.compile(sparse, dynamic=False)
    kept = [value for site in found["sites"] for value in site["kept"]]
    mass = [value for site in found["sites"] for value in site["mass"]]
    facts = {
        "length": length,
        "share": share,
        "kept": round(sum(kept) / len(kept), 4),
        "mass": round(sum(mass) / len(mass), 4),
        "lowered": sorted({site["lowered"].split(":")[0] for site in found["sites"]}),
        "dtype": "fp32",
    }
    candidates = {
        "dense": lambda: network(**inputs),
        "dense-compiled": lambda: compiled(**inputs),
        "sparse": lambda: sparse(**inputs),
        "sparse-compiled": lambda: quick(**inputs),
    }
    name = f"code-gpt-shaped length={length} off={share}"
    cases = (
        Case(f"{name} eager", f"{share} eager", "sparse", ("dense", "dense-compiled"), facts),
        Case(f"{name} compiled", f"{share} compiled", "sparse-compiled", ("dense", "dense-compiled"), facts),
    )
    return Scene(f"decoder 6 × 6 × 32, {length} tokens, batch 1, fp32", candidates, cases)


def decoder() -> nn.Module:
    from surgery.zoo.gpt import GPT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPT(**SIZES).eval()
        for name, parameter in network.named_parameters():
            if name.endswith(("o_proj.weight", "down.weight")):  # the zoo starts them at zero
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return network


def rows(length: int) -> Tensor:
    """The first bytes of the standard library's modules, in order of name: int64 [2 · ROWS, length]."""
    source = b""
    for path in sorted(Path(sys.modules["os"].__file__).parent.glob("*.py")):
        source += path.read_bytes()
        if len(source) >= 2 * ROWS * length:
            break
    return torch.frombuffer(bytearray(source[: 2 * ROWS * length]), dtype=torch.uint8).long().view(-1, length)


def sparsified(network: nn.Module, data: Tensor, share: str) -> tuple[nn.Module, dict[str, Any]]:
    """The rewritten graph and its finding."""
    from surgery.models.data import Data
    from surgery.models.loaded import LoadedModel
    from surgery.session.prepare import prepare
    from surgery.session.rewrite import choose, context_of, rewrite

    model = LoadedModel("code-gpt-shaped", network, {"input_ids": data[:2, :128]})
    prepared = prepare(CLAUSE.format(share=share), model)
    held_out, calibration = ({"input_ids": part} for part in data.split(ROWS))
    known = Data("stdlib", "source", "", held_out, task="causal-lm", calibration=calibration)
    context = context_of(prepared, known)
    choices = choose(prepared, context)
    return rewrite(prepared, choices, context), dict(choices[0].findings[0])


if __name__ == "__main__":
    sys.exit(main("block_patterns", scenes))
