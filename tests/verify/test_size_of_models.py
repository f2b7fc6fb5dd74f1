"""Parameters, bytes and FLOPs against sums done by hand."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from surgery.verify.size import Size, flops, parameters, size, weight_bytes


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))

    def forward(self, index):
        return self.head(self.table(index))


class Attention(nn.Module):
    """Two heads of 8 over a fused projection."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v)


X = torch.randn(2, 5, 16)
FLOPS = 2 * 5 * 16 * 48 + 2 * (2 * 2 * 5 * 5 * 8)


def test_tied_weights_count_once():
    model = Tied()
    assert parameters(model) == 88 and weight_bytes(model) == 88 * 4 + 3 * 8
    assert size(model, (torch.zeros(4, dtype=torch.long),), samples=4) == Size(88, 376, 2 * 8 * 11)


def test_ties_survive_capture_and_views():
    graph = torch.export.export(Tied(), (torch.zeros(4, dtype=torch.long),), strict=False).module(check_guards=False)
    assert parameters(graph) == 88
    model = Tied()
    model.head.weight = nn.Parameter(model.table.weight.data.view(11, 8))
    assert parameters(model) == 88


def test_two_halves_of_one_storage_are_two():
    whole = torch.zeros(4, 6)
    model = nn.ParameterList([nn.Parameter(whole[:2]), nn.Parameter(whole[2:])])
    assert parameters(model) == 24 and weight_bytes(model) == 96


def test_flops_per_sample_of_module_graph_and_meta():
    module = Attention()
    graph = torch.export.export(module, (X,), strict=False).module(check_guards=False)
    assert flops(module, {"x": X}, samples=2) == FLOPS
    assert flops(graph, (X,), samples=2) == FLOPS
    assert flops(module.to("meta"), (X.to("meta"),), samples=2) == FLOPS
