"""Peak memory of a forward pass against sums done by hand (float32: four bytes an entry)."""

import pytest
import torch
from torch import nn

from surgery.verify.memory import LiveStorages, peak_memory

X = torch.ones(10, 100)  # 4000 bytes
MIB = 2**20


class Chain(nn.Module):
    """x → x+1 → ·2 → ·3: at the worst moment an operator's input and output live beside x."""

    def forward(self, x):
        y = x + 1
        y = y * 2
        return y * 3


class Keep(nn.Module):
    """Three results, all alive at the end."""

    def forward(self, x):
        return x + 1, x + 2, x + 3


class Pair(nn.Module):
    def forward(self, x, y):
        return x + y


class Views(nn.Module):
    """Views and in-place work take no new memory."""

    def forward(self, x):
        y = x + 1
        return y.view(100, 10).t().chunk(2), y.mul_(2), y[3:5]


class Parts(nn.Module):
    """A tied weight and a buffer: 100 × 100 entries once, and 50."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(100, 100, bias=False)
        self.second = nn.Linear(100, 100, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.zeros(50))

    def forward(self, x):
        return self.second(self.first(x))


CASES = [
    ("chain: x, an input and an output", Chain(), (X,), 3 * 4000),
    ("by keyword", Chain(), {"x": X}, 3 * 4000),
    ("everything kept", Keep(), (X,), 4 * 4000),
    ("views count once", Views(), (X,), 2 * 4000),
    ("tied weight once, buffer, x, hidden, output", Parts(), (X,), 40000 + 200 + 3 * 4000),
    ("an input given twice counts once", Pair(), {"x": X, "y": X}, 2 * 4000),
]


@pytest.mark.parametrize(("module", "inputs", "bytes_"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_by_hand(module, inputs, bytes_):
    assert peak_memory(module, inputs) == bytes_


def test_half_precision_halves_it():
    assert peak_memory(Chain(), (X.bfloat16(),)) == 3 * 2000


def test_a_captured_graph_and_the_meta_device_measure_the_same():
    graph = torch.export.export(Chain(), (X,), strict=False).module(check_guards=False)
    assert peak_memory(graph, (X,)) == peak_memory(Chain(), (X.to("meta"),)) == 3 * 4000


def test_a_freed_storage_stops_counting():
    with LiveStorages() as live:
        for _ in range(5):
            x = torch.ones(25)
            del x
    assert (live.peak, live.now) == (100, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_other_models_do_not_count():
    other = torch.zeros(64 * MIB, device="cuda")
    x = torch.ones(MIB, device="cuda")
    assert peak_memory(Keep(), (x,)) == 4 * 4 * MIB
    del other
