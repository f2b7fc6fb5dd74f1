"""Print what the launchers of `kernels/triton/` launch, as JSON: architecture → variants; nothing runs.

python launched.py ARCH.., without TRITON_INTERPRET: kernels are recorded where Triton would compile and launch them.
"""

import functools
import itertools
import json
import sys

import torch
from surgery.kernels.aot.manifest import SHELF, files, load
from surgery.kernels.layouts import Blocks, Edges
from surgery.kernels.operators.block_weight import BlockWeight
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS
from triton.runtime.jit import JITFunction

LAUNCH = ("num_warps", "num_stages")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "bf16", torch.int32: "i32", torch.int64: "i64"}
"""fp16 counts as bf16: the same bytes, the same rows of the tables."""
HEAD_DIMS = (7, 16, 32, 40, 48, 64, 80, 100, 128, 160, 200, 256)


seen: set[str] = set()


def record(function: JITFunction, *given, grid, warmup=False, **named) -> None:
    """In place of `JITFunction.run`."""
    options = {name: named.pop(name) for name in list(named) if name not in function.arg_names}
    arguments = dict(zip(function.arg_names, given, strict=False)) | named
    fixed = {each.name: arguments[each.name] for each in function.params if each.is_constexpr}
    kinds = {torch.uint8: "u8"} | KINDS
    pointers = {name: f"*{kinds[each.dtype]}" for name, each in arguments.items() if isinstance(each, torch.Tensor)}
    launch = [options.pop(name) for name in LAUNCH]
    name = f"{function.fn.__module__.rpartition('.')[2]}:{function.fn.__name__}"
    sizes = {key: int(value) for key, value in fixed.items()} | {"odd": bool(arguments.get("dim", 0) % 16)}
    seen.add(json.dumps([name, pointers, sizes, *launch, options], sort_keys=True))


def attention(dim: int, dtype: torch.dtype) -> None:
    """Each launcher that takes heads, for one head dim."""
    for heads, kv_heads, queries, keys in ((1, 1, 5, 9), (4, 2, 40, 33), (24, 1, 3, 3), (71, 1, 2, 2)):
        q = torch.randn(1, heads, queries, dim).to(dtype)
        k, v = (torch.randn(1, kv_heads, keys, dim).to(dtype) for _ in range(2))
        edge_attention(q, k, v)
        gated_attention(q, k, v)
        decode(q, k, v)
        for side in (16, 32, 64, 128) if heads < 5 else ():
            block_attention(q, k, v, (side, 128))
            block_attention(q, k, v, (128, side))


@functools.cache
def all_edges(patterns: int, queries: int, keys: int) -> list[torch.Tensor]:
    return Edges.from_mask(torch.ones(patterns, queries, keys, dtype=torch.bool)).tensors()


@functools.cache
def all_blocks(queries: int, keys: int, sides: tuple[int, int]) -> list[torch.Tensor]:
    return Blocks.from_mask(torch.ones(1, queries, keys, dtype=torch.bool), sides).tensors()


def edge_attention(q, k, v) -> None:
    forward, backward = (load(f"edge_attention_{way}") for way in ("forward", "backward"))
    for patterns in (1, q.shape[1]):
        edges = all_edges(patterns, q.shape[2], k.shape[2])
        for normalize, causal in (("kept", False), ("all", False), ("all", True)):
            out, lse = forward.forward(q, k, v, edges, 1.0, normalize, causal)
            backward.backward(out, None, q, k, v, out, lse, edges, 1.0, normalize, causal)


def gated_attention(q, k, v) -> None:
    forward, backward = (load(f"gated_attention_{way}") for way in ("forward", "backward"))
    bias = torch.zeros(q.shape[1])
    for gates, count in itertools.product(("hard", "sampled", "soft"), (False, True)):
        out, lse, *_ = forward.gated_attention_forward(q, k, v, bias, None, None, 1.0, True, gates, 1.0, count)
        expected = torch.zeros(q.shape[:2])
        given = (out, lse, expected, q, k, v, bias, None, None, out, lse, 1.0, True, gates, 1.0)
        backward.gated_attention_backward(*given)


def block_attention(q, k, v, sides) -> None:
    from surgery.kernels.triton._blocks import refuse_triton

    if refuse_triton(q, sides):
        return
    rest = (all_blocks(q.shape[2], k.shape[2], sides), sides, 1.0)
    out, lse = load("block_attention_forward").block_attention_forward(q, k, v, *rest)
    _, delta = load("block_attention_dq").block_attention_dq(out, lse, q, k, v, out, lse, *rest)
    load("block_attention_dkv").block_attention_dkv(out, q, k, v, lse, delta, *rest)


def decode(q, k, v) -> None:
    if q.shape[-1] % 16:
        return
    lists = torch.zeros(1, k.shape[1], 1, dtype=torch.int32)
    load("block_decode").block_decode(q, k, v, lists, torch.ones(1, dtype=torch.int32), 16, 1.0)


@functools.cache
def block_weight(dtype: torch.dtype, side: int) -> BlockWeight:
    keep = torch.ones(-(-96 // side), -(-48 // side), dtype=torch.bool)
    return BlockWeight.from_dense(torch.randn(96, 48).to(dtype), (side, side), keep)


def layers(dtype: torch.dtype, rows: int) -> None:
    """Each launcher that takes rows of a layer."""
    x, up, down, bias = (torch.randn(shape).to(dtype) for shape in ((rows, 48), (96, 48), (96, 48), (48,)))
    listed = torch.tensor([0], dtype=torch.int32)
    run = load("gathered_ffn_down").gathered_ffn
    for gate, activation, turned in itertools.product((None, up), ACTIVATIONS, (down, down.t().contiguous().t())):
        run(x, up, gate, turned, None, None, bias, listed, 32, activation)
    for activate in (False, True):
        load("modulation").modulation(x, up, None, activate)
    for side in (16, 32, 64, 128):
        weight = block_weight(dtype, side)
        load("block_linear").block_linear(x, weight.values, None, weight.tensors(), 96)
        grad = torch.randn(rows, 96).to(dtype)
        load("block_linear_backward").block_linear_backward(grad, x, weight.values, weight.tensors(), [True] * 3)
    for m, blocks, shared in itertools.product((5, 32, 64), (1, 128, 200, 300, 700, 2048), (False, True)):
        probes, dictionary = torch.randn(m, 48).to(dtype), torch.randn(m, 1, blocks).to(dtype)
        load("probe_select").probe_select(x, probes, dictionary, 1, shared)


def variants_of(arch: str) -> list[str]:
    """All that is launched on an architecture, by calls of every launcher with every dtype and class of sizes."""
    seen.clear()
    for module in [each for name, each in sys.modules.items() if name.startswith("surgery.kernels.triton.")]:
        if hasattr(module, "architecture"):
            module.architecture = lambda device: arch
    for dtype in DTYPES:
        for dim in HEAD_DIMS:
            attention(dim, dtype)
        for rows in (1, 3, 16, 17, 64, 200):
            layers(dtype, rows)
    return sorted(seen)


if __name__ == "__main__":
    JITFunction.run = record
    for each in files(SHELF):
        load(each)
    print(json.dumps({arch: variants_of(arch) for arch in sys.argv[1:]}))
