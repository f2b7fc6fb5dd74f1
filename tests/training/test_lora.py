"""Adapters: what they leave alone, and that merging them gives what was trained."""

import pytest
import taught
import torch
from torch import nn

from surgery.anatomy.capture import capture
from surgery.training.engine import train
from surgery.training.objective import Recovery
from surgery.training.settings import Settings
from surgery.training.trainee import Trainee


class Turned(nn.Module):
    """Weights as x @ W and as addmm, [K, M]."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(taught.BYTES, 16)
        self.first, self.second = nn.Parameter(torch.randn(16, 24) / 4), nn.Parameter(torch.randn(24, taught.BYTES) / 4)
        self.bias = nn.Parameter(torch.zeros(taught.BYTES))

    def forward(self, input_ids):
        x = torch.relu(self.table(input_ids) @ self.first)
        return torch.addmm(self.bias, x.reshape(-1, 24), self.second).reshape(*input_ids.shape, -1)


@pytest.mark.parametrize("kind", [taught.Reader, Turned])
def test_merging_equals_the_adapters(kind):
    graph = taught.graph(kind, torch.float64)
    trainee = Trainee.of(graph, rank=3)
    inputs = taught.rows(4)
    torch.testing.assert_close(trainee.module(input_ids=inputs), graph(input_ids=inputs), rtol=0, atol=1e-12)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainee.trained.values():
            parameter.copy_(torch.randn(parameter.shape, generator=chance, dtype=torch.float64) / 4)
    merged = trainee.weights()
    changed = capture(taught.graph(kind, torch.float64), {"input_ids": inputs})
    with torch.no_grad():
        for name, value in merged.items():
            changed.get_parameter(name).copy_(value)
        ours, theirs = changed(input_ids=inputs), trainee.module(input_ids=inputs)
        assert (ours - graph(input_ids=inputs)).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_tied_head_has_no_adapter_and_frozen_tensors_are_shared_with_the_model():
    graph = taught.graph()
    trainee = Trainee.of(graph, rank=2)
    assert {adapter.weight for adapter in trainee.adapters} == {"mix.weight", "up.weight", "down.weight"}
    assert trainee.notes == ("no adapters at table.weight: something else reads the weight",)
    held = trainee.module.get_parameter("up.weight")
    assert held.data_ptr() == graph.get_parameter("up.weight").data_ptr() and not held.requires_grad


def test_only_adapters_and_what_is_named_change():
    graph = taught.graph()
    settings = Settings(steps=30, rate=1e-2, batch=8, lora=2)
    trained = train(graph, taught.calibration(graph), settings, Recovery(), whole=("norm.bias",))
    assert set(trained.weights) == {"mix.weight", "up.weight", "down.weight", "norm.bias"}
    assert trained.best.loss < trained.start.loss
    change = trained.weights["up.weight"].detach() - graph.get_parameter("up.weight").detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
