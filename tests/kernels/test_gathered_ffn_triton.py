"""The Triton kernels of the gathered feed-forward, in the interpreter without a GPU."""

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager
from surgery.kernels.reference.gathered_ffn import gathered_ffn as reference
from surgery.kernels.triton.gathered_ffn_down import gathered_ffn as launch
from surgery.kernels.triton.gathered_ffn_down import partition
from torch import Tensor

# rows, d, f, block, activation, gated, biased, by_rows, blocks
PROBLEMS = [
    (1, 96, 200, 32, "gelu", False, True, True, [0, 3, 6, -1]),
    (1, 70, 128, 64, "silu", True, False, False, [1]),
    (3, 100, 256, 64, "silu", True, True, True, [0, 2, 3]),
    (16, 64, 130, 32, "relu", False, True, False, [0, 4, -1, -1]),
    (17, 33, 96, 32, "gelu_tanh", True, True, True, [0, 1, 2]),
    (64, 40, 256, 128, "relu2", False, False, True, [1, -1]),
    (64, 72, 64, 64, "gelu", True, True, True, [0]),
    (2, 48, 96, 32, "relu2", True, True, True, [-1, -1]),
]


def inputs_of(problem: tuple, dtype: torch.dtype, device: str, seed: int = 0) -> tuple:
    rows, d, f, block, activation, gated, biased, by_rows, blocks = problem
    torch.manual_seed(rows + d + seed)

    def made(*shape: int, scale: float = 1.0) -> Tensor:
        """Inside a parent full of NaN: rows around it, columns behind it."""
        parent = torch.full((shape[0] + 2, *(side + 3 for side in shape[1:])), float("nan"), dtype=dtype, device=device)
        inner = parent[(slice(1, -1), *(slice(0, side) for side in shape[1:]))]
        return inner.copy_(torch.randn(shape) * scale)

    up, gate = made(f, d, scale=d**-0.5), made(f, d, scale=d**-0.5) if gated else None
    down_t = made(f, d, scale=f**-0.5) if by_rows else made(d, f, scale=f**-0.5).t()
    biases = (made(f), made(f) if gated else None, made(d)) if biased else (None, None, None)
    listed = torch.tensor(blocks, dtype=torch.int32, device=device)
    return made(rows, d), up, gate, down_t, *biases, listed, block, activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: "-".join(map(str, problem[:6])))
def test_against_the_reference(problem, dtype, device):
    def draw(seed: int) -> Draw:
        inputs = inputs_of(problem, dtype, device, seed)
        wide = (each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)
        return Draw(lambda: [ours(inputs)], [reference(*inputs)], [reference(*wide)])

    def ours(inputs: tuple) -> Tensor:
        made = launch(*inputs)
        assert made.dtype == dtype
        return made

    assert_as_exact_as_eager(draw, {"y": 2}, problem[0], own=-(-8 // problem[0]))


@pytest.mark.parametrize("rows", [1, 3])
def test_two_runs_give_the_same_bits(rows, device):
    inputs = inputs_of((rows, 64, 128, 32, "silu", True, True, True, [0, 1, 3]), torch.float32, device)
    assert torch.equal(launch(*inputs), launch(*inputs))


def test_no_slots_and_no_rows(device):
    x, *rest = inputs_of(PROBLEMS[0], torch.float32, device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    assert torch.equal(launch(x, *rest[:6], none, *rest[7:]), rest[5].expand(1, 96))
    assert launch(x[:0], *rest).shape == (0, 96)


@pytest.mark.parametrize(("tiles", "programs", "processors"), [(1, 16, 132), (40, 16, 132), (257, 1, 4), (5, 900, 4)])
def test_partition_covers_every_tile_once(tiles, programs, processors):
    parts, each = partition(tiles, programs, processors)
    assert (parts - 1) * each < tiles <= parts * each
    assert parts * programs <= max(programs, 2 * processors + programs)
