"""Decoding over listed cache blocks: every implementation against the reference in fp64, and what is refused."""

from dataclasses import dataclass

import pytest
import torch
from surgery.kernels.cpu import block_decode as cpu
from surgery.kernels.operators.block_decode import ON_CUDA, OPERATOR, block_decode, check_lists
from surgery.kernels.reference.block_decode import block_decode as reference
from torch.library import opcheck

CUDA = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA


@dataclass(frozen=True)
class Shape:
    """A call: KV heads, query heads of each, and how much of each list is filled."""

    batch: int = 2
    kv_heads: int = 2
    group: int = 2
    tokens: int = 1
    keys: int = 150
    dim: int = 32
    block: int = 16
    listed: int = 6
    filled: tuple[int, ...] = (6, 3)
    lengths: tuple[int, ...] = (150, 77)

    @property
    def name(self):
        return f"g{self.group} t{self.tokens} k{self.keys} d{self.dim} b{self.block} n{self.listed}"


SHAPES = [
    Shape(),
    Shape(group=1, tokens=16, dim=80, lengths=(150, 20)),
    Shape(group=16, tokens=5, kv_heads=1, dim=64, block=32, listed=4, filled=(4, 1)),
    Shape(batch=1, group=3, tokens=7, dim=128, keys=1, block=64, listed=1, filled=(1,), lengths=(1,)),
    Shape(group=4, dim=256, keys=90, block=7, listed=9, filled=(9, 0)),
    Shape(batch=1, group=8, tokens=2, keys=600, block=128, listed=5, filled=(5,), lengths=(513,)),
    Shape(listed=0, filled=(0, 0)),
    Shape(tokens=4, lengths=(2, 0)),
]


def guarded(parent_shape, lengths, keys, dtype, device):
    """A cache inside a parent of NaN, as are its places past the lengths; no row follows another closely."""
    parent = torch.full((*parent_shape[:2], keys + 3, parent_shape[3] + 5), float("nan"), dtype=dtype)
    values = torch.randn(*parent_shape[:2], keys, parent_shape[3], dtype=torch.float64).to(dtype)
    cache = parent[:, :, 1 : keys + 1, 2 : parent_shape[3] + 2]
    for batch, length in enumerate(lengths):
        cache[batch, :, :length] = values[batch, :, :length]
    return parent.to(device)[:, :, 1 : keys + 1, 2 : parent_shape[3] + 2]


def call(shape, dtype, device):
    torch.manual_seed(shape.keys + shape.dim)
    heads = shape.kv_heads * shape.group
    q = torch.randn(shape.batch, shape.tokens, heads, shape.dim, dtype=torch.float64).to(dtype).transpose(1, 2)
    k, v = (
        guarded((shape.batch, shape.kv_heads, 0, shape.dim), shape.lengths, shape.keys, dtype, device) for _ in range(2)
    )
    blocks = -(-shape.keys // shape.block)
    lists = torch.full((shape.batch, shape.kv_heads, shape.listed), -1, dtype=torch.int32)
    for batch, filled in enumerate(shape.filled):
        for head in range(shape.kv_heads):
            some = torch.randperm(blocks)[:filled].sort().values
            lists[batch, head, : len(some)] = some.int()
    check_lists(lists, blocks)
    lengths = torch.tensor(shape.lengths, dtype=torch.int32, device=device)
    return q.to(device), k, v, lists.to(device), lengths, shape.block, shape.dim**-0.5


def truth(arguments, dtype):
    q, k, v, *rest = arguments
    return reference(*(each.nan_to_num(0).to(dtype) for each in (q, k, v)), *rest)


def holds(out, arguments):
    """At most twice the error that the reference itself makes in this dtype."""
    dtype = arguments[0].dtype
    exact = truth(arguments, torch.float64)
    eager = (truth(arguments, dtype).double() - exact).abs().max()
    error = (out.double() - exact).abs().max()
    assert out.dtype == dtype and out.shape == exact.shape and out.is_contiguous()
    assert error <= 2 * eager + torch.finfo(torch.float32).eps * exact.abs().max(), (float(error), float(eager))


def interpreted(arguments):
    from surgery.kernels.triton.block_decode import block_decode as launch

    return launch(*arguments)


IMPLEMENTATIONS = {"operator": lambda a: OPERATOR(*a), "gathered": lambda a: cpu.gathered(*a), "triton": interpreted}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_implementation_holds(shape, dtype, name, device):
    arguments = call(shape, dtype, device)
    holds(IMPLEMENTATIONS[name](arguments), arguments)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[5]], ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_holds(shape, dtype):
    arguments = call(shape, dtype, "cpu")
    reason = cpu.refuse_native(*arguments)
    if reason:
        pytest.skip(reason)
    holds(cpu.native(*arguments), arguments)


def test_native_takes_any_number_of_threads():
    arguments = call(
        Shape(batch=2, keys=3000, block=64, listed=40, filled=(40, 33), lengths=(2990, 3000)), torch.float32, "cpu"
    )
    if cpu.refuse_native(*arguments):
        pytest.skip(cpu.refuse_native(*arguments))
    threads = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outs.append(cpu.native(*arguments))
    finally:
        torch.set_num_threads(threads)
    holds(outs[0], arguments)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_two_runs_give_the_same_bits(name, device):
    arguments = call(SHAPES[5], torch.float32, device)
    assert torch.equal(IMPLEMENTATIONS[name](arguments), IMPLEMENTATIONS[name](arguments))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_token_without_a_key_gives_zero(name, device):
    arguments = call(SHAPES[7], torch.float32, device)
    out = IMPLEMENTATIONS[name](arguments)
    assert (out[1] == 0).all() and (out[0, :, :2] == 0).all() and not out.isnan().any()


def test_a_list_of_every_block_is_attention_over_the_cache(device):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 1, 64), torch.randn(2, 2, 200, 64), torch.randn(2, 2, 200, 64)
    every = torch.arange(4, dtype=torch.int32).expand(2, 2, 4)
    lengths = torch.full((2,), 200, dtype=torch.int32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    out = block_decode(*(each.to(device) for each in (q, k, v, every, lengths)), block=64)
    torch.testing.assert_close(out.cpu(), expected)


def test_fp64_on_the_cpu():
    arguments = call(SHAPES[0], torch.float64, "cpu")
    torch.testing.assert_close(OPERATOR(*arguments), truth(arguments, torch.float64), rtol=1e-12, atol=1e-12)


def test_last_dims_that_are_not_contiguous(device):
    q, k, v, *rest = call(SHAPES[0], torch.float32, device)
    turned = [each.transpose(2, 3).contiguous().transpose(2, 3) for each in (q, k, v)]
    for run in IMPLEMENTATIONS.values():
        holds(run((*turned, *rest)), (*turned, *rest))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_backend_can_be_asked_for(backend, monkeypatch, device):
    monkeypatch.setenv("SURGERY_KERNELS", backend)
    q, k, v, *rest = call(SHAPES[0], torch.float32, device)
    arguments = q, k.nan_to_num(0), v.nan_to_num(0), *rest
    holds(OPERATOR(*arguments), arguments)


@pytest.mark.parametrize("dim", (40, 512))
def test_head_dims_without_vectors_or_tiles_are_refused_on_a_gpu(dim, device):
    on_gpu = next(backend for backend in ON_CUDA if backend.name == "triton")
    assert on_gpu.refuse(*call(Shape(dim=64), torch.float32, device)) is None
    said = on_gpu.refuse(*call(Shape(dim=dim), torch.float32, device))
    assert said == f"head dim {dim} is no multiple of 16 up to 256"


def test_operator_checks(device):
    opcheck(OPERATOR, call(SHAPES[0], torch.float32, device))


def test_compiles_whole_and_exports(device):
    q, k, v, lists, lengths, block, _ = call(SHAPES[0], torch.float32, device)

    class Decode(torch.nn.Module):
        def forward(self, *tensors):
            return block_decode(*tensors, block=block) * 2

    tensors = q, k, v, lists, lengths
    expected = Decode()(*tensors)
    torch.compiler.reset()
    assert torch.equal(torch.compile(Decode(), fullgraph=True, backend="aot_eager")(*tensors), expected)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(
        Decode(), tensors, dynamic_shapes=({0: batch},) * 5 and [({0: batch},) * 5], strict=False
    )
    longer = [torch.cat([each, each, each[:1]]) for each in tensors]
    assert torch.equal(exported.module()(*longer), Decode()(*longer))
    assert any(node.target is OPERATOR for node in exported.graph.nodes)


def test_operations_are_counted(device):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        OPERATOR(*call(SHAPES[0], torch.float32, device))
    assert counter.get_total_flops() == 4 * (2 * 4 * 1 * 32) * 6 * 16


def test_a_gradient_is_refused():
    q, k, v, *rest = call(SHAPES[0], torch.float32, "cpu")
    with pytest.raises(RuntimeError, match="block_decode has no gradient"):
        OPERATOR(q.requires_grad_(), k, v, *rest)
    with torch.no_grad():
        OPERATOR(q, k, v, *rest)


def refuse(**changes):
    given = {
        "q": torch.zeros(2, 4, 1, 32),
        "k": torch.zeros(2, 2, 64, 32),
        "v": torch.zeros(2, 2, 64, 32),
        "block_idx": torch.zeros(2, 2, 1, dtype=torch.int32),
        "lengths": torch.ones(2, dtype=torch.int32),
        **changes,
    }
    block_decode(**given)


REFUSED = {
    "heads": ({"q": torch.zeros(2, 3, 1, 32)}, "3 query heads cannot be shared evenly by 2"),
    "dims": ({"q": torch.zeros(2, 4, 1, 16)}, r"q \[2, 4, 1, 16\], k \[2, 2, 64, 32\]"),
    "tokens": ({"q": torch.zeros(2, 4, 17, 32)}, "17 new tokens: decoding takes 1 to 16"),
    "dtypes": ({"k": torch.zeros(2, 2, 64, 32).half()}, "q is torch.float32, k torch.float16"),
    "list": ({"block_idx": torch.zeros(2, 2, 1)}, r"block_idx is torch.float32 \[2, 2, 1\]"),
    "lengths": ({"lengths": torch.ones(3, dtype=torch.int32)}, r"lengths is torch.int32 \[3\]"),
    "block": ({"block": 0}, "blocks of 0 tokens"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused(what):
    changes, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        refuse(**changes)


LISTS = {
    "out of range": ([0, 4], r"block_idx\[0, 0, 1\] = 4 is out of range \(4 blocks\)"),
    "negative": ([-2, 1], r"block_idx\[0, 0, 0\] = -2 is out of range"),
    "unsorted": ([2, 1], r"block_idx\[0, 0, 1\] = 1 is unsorted"),
    "duplicate": ([1, 1], r"block_idx\[0, 0, 1\] = 1 is a duplicate"),
    "after filling": ([-1, 1], r"block_idx\[0, 0, 1\] = 1 follows a -1"),
}


@pytest.mark.parametrize("what", LISTS)
def test_wrong_lists_are_refused(what):
    numbers, message = LISTS[what]
    with pytest.raises(ValueError, match=message):
        check_lists(torch.tensor([[numbers]], dtype=torch.int32), 4)


def test_a_list_is_cut_into_parts_that_hold_all_of_it():
    from surgery.kernels.triton.block_decode import partition

    for tiles in range(50):
        for programs in (1, 3, 64, 1000):
            parts, each = partition(tiles, programs, 132)
            assert parts * each >= tiles and (parts - 1) * each < max(tiles, 1)


@pytest.mark.parametrize("name", ["gathered", "triton"])
def test_offsets_past_two_to_the_31(name, device):
    """A cache whose third head begins 2^31 elements on; only the pages that are written exist."""
    sizes, strides = (1, 3, 40, 32), (0, 1 << 30, 32, 1)
    storage = torch.UntypedStorage(2 * ((2 << 30) + 40 * 32), device=device)
    k = torch.tensor([], dtype=torch.float16, device=device).set_(storage, 0, sizes, strides)
    k.copy_(torch.randn(sizes))
    q, v = torch.randn(1, 3, 1, 32).half().to(device), torch.randn(sizes).half().to(device)
    lists = torch.tensor([0, 2], dtype=torch.int32, device=device).expand(1, 3, 2)
    lengths = torch.tensor([39], dtype=torch.int32, device=device)
    arguments = q, k, v, lists, lengths, 16, 32**-0.5
    holds(IMPLEMENTATIONS[name](arguments), (q, k.contiguous(), *arguments[2:]))
