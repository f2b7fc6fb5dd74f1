"""Feed-forward layers are found by what bends their channels, whichever way that is written, in place or not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.anatomy import capture, inspect
from surgery.anatomy.flops import flops_per_sample

X = torch.randn(2, 5, 8)
QUICK = {"timing": False, "compiled": False, "controls": False}


def bent(x):
    """Apertus' activation: another function on either side of 0."""
    small = torch.expm1(torch.minimum(x, torch.tensor(-1e-6))) - x
    return torch.where(x > 0, 0.8 * x * x + 0.5 * x, 0.8 * small + 0.5 * x)


class Written(nn.Module):
    """An activation written as a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


ACTIVATIONS = {
    "relu in place": nn.ReLU(inplace=True),
    "silu in place": nn.SiLU(inplace=True),
    "hardswish in place": nn.Hardswish(inplace=True),
    "leaky relu in place": nn.LeakyReLU(0.1, inplace=True),
    "hardswish": nn.Hardswish(),
    "prelu": nn.PReLU(),
    "softsign": nn.Softsign(),
    "log sigmoid": nn.LogSigmoid(),
    "tanhshrink": nn.Tanhshrink(),
    "rrelu": nn.RReLU(),
    "threshold": nn.Threshold(0.1, -0.2),
    "hardsigmoid": nn.Hardsigmoid(),
    "clamp": Written(lambda x: x.clamp(min=0)),
    "larger of two": Written(lambda x: torch.maximum(x, 0.1 * x)),
    "max of two": Written(lambda x: torch.max(x, 0.1 * x)),
    "where": Written(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "masked": Written(lambda x: x.masked_fill(x < 0, 0.0)),
    "masked in place": Written(lambda x: x.masked_fill_(x < 0, 0.0)),
    "snake": Written(lambda x: x + torch.sin(x) ** 2),
    "two sides": Written(bent),
    "mish by hand": Written(lambda x: x * torch.tanh(F.softplus(x))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_channels_are_found_and_cut(name):
    torch.manual_seed(0)
    layers = [nn.LayerNorm(8), nn.Linear(8, 16), ACTIVATIONS[name], nn.Dropout(0.1), nn.Linear(16, 8)]
    model = nn.Sequential(*layers).eval()
    result = surgery.compile(model, "prune 25% of mlp channels by magnitude", example_inputs=(X,), **QUICK)
    assert [action["after"] for action in result.report["actions"]] == [{"width": 12}]
    assert all(claim["holds"] for claim in result.report["parity"])


class Gated(nn.Module):
    """Layers that feed forward, and what looks like one and is not."""

    def __init__(self):
        super().__init__()
        self.scale, self.up, self.down = nn.Parameter(torch.ones(8)), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale  # a norm bends, but mixes
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(-1).float()
        x = x + torch.sin(positions)  # nobody's channels
        return self.down(F.relu(self.up(x)))


def test_what_bends_outside_of_a_layer_is_none():
    assert [(site.kind, site.width) for site in inspect(Gated().eval(), (X,)).sites] == [("mlp", 16)]


class InPlace(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), forward

    def forward(self, x):
        return self.function(self.layer, x)


def read_before(layer, x):
    y = layer(x)
    z = y * 2
    return y.add_(z)


def read_behind(layer, x):
    y = layer(x)
    y.relu_()
    return y, y + 1


def through_a_view(layer, x):
    y = layer(x)
    first = y[..., :4]
    y.relu_()
    return first + 1


def of_another_kind(layer, x):
    y = layer(x).to(torch.float16)
    return y.add_(x)


def into_the_input(layer, x):
    return layer(x.relu_())


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (read_before, []),
        (read_behind, []),
        (through_a_view, ["relu_"]),
        (of_another_kind, ["add_"]),
        (into_the_input, ["relu_"]),
    ],
)
def test_what_is_written_in_place_is_written_plainly_where_nobody_sees_it(function, kept):
    torch.manual_seed(0)
    model = InPlace(function).eval()
    graph_module = capture(model, (X,))
    found = [node.target.overloadpacket.__name__ for node in graph_module.graph.nodes if "_." in str(node.target)]
    assert found == kept
    one, other = X.clone(), X.clone()
    torch.testing.assert_close(graph_module(one), model(other))
    assert torch.equal(one, other)


class Viewed(nn.Module):
    def forward(self, x, y):
        return x.view_as(other=y) + y


def test_a_view_like_another_is_one_of_its_sizes():
    graph_module = capture(Viewed(), (X, X + 1))
    (node,) = [node for node in graph_module.graph.nodes if node.target is torch.ops.aten.view.default]
    assert len(node.all_input_nodes) == 3, "the tensor and two free sizes"
    x, y = torch.randn(3, 7, 8), torch.randn(3, 7, 8)
    assert torch.equal(graph_module(x, y), x + y)


class Sharpened(nn.Module):
    """Operators by their second names."""

    def forward(self, x):
        return torch.concat([torch.multiply(x, 2), torch.clip(x, min=0).absolute()], -1).greater(1)


def test_operators_by_a_second_name_go_by_the_first():
    graph_module = capture(Sharpened(), (X,))
    found = {node.target.overloadpacket.__name__ for node in graph_module.graph.nodes if node.op == "call_function"}
    assert found <= {"cat", "mul", "clamp", "abs", "gt", "sym_size"}
    assert torch.equal(graph_module(X), Sharpened()(X))


class Spread(nn.Module):
    """A mask laid out like the scores of attention that it hides, whose heads are cut."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (4, 2)).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = torch.divide(q @ k.mT, 2**0.5)
        hidden = (x[:, None, None, :, 0] > 1).expand_as(scores)
        weights = scores.masked_fill_(hidden, torch.tensor(-1e4)).softmax(-1).type_as(v)
        empty = torch.tensor([])
        return self.out((weights @ torch.cat([empty, v], -2)).transpose(1, 2).reshape(x.shape))


def test_heads_under_a_mask_that_is_spread_over_them_are_cut():
    torch.manual_seed(0)
    result = surgery.compile(Spread().eval(), "prune 50% of attention heads", example_inputs=(X,), **QUICK)
    assert result.report["actions"][0]["after"] == {"heads": 2}
    assert all(claim["holds"] for claim in result.report["parity"])


class Turned(nn.Module):
    """Positions that turn pairs of a head as complex numbers."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (2, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1])
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.view_as_complex(each.unflatten(-1, (2, 2))) * turn for each in (q, k))
        q, k = torch.view_as_real(q).flatten(3), torch.view_as_real(k).flatten(3)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_heads_that_complex_numbers_turn_are_cut():
    torch.manual_seed(0)
    result = surgery.compile(Turned().eval(), "prune 50% of attention heads", example_inputs=(X,), **QUICK)
    assert result.report["actions"][0]["after"] == {"heads": 1}
    assert all(claim["holds"] for claim in result.report["parity"])


class Routed(nn.Module):
    """A layer for rows that data chooses."""

    def __init__(self):
        super().__init__()
        self.layer, self.all = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        rows = self.all(x).flatten(0, 1)
        return self.layer(rows[rows[:, 0] > 0])


def test_work_on_as_many_rows_as_data_chooses_is_not_counted():
    graph_module = capture(Routed(), (X,))
    assert flops_per_sample(graph_module, graph_module.graph.nodes) == 5 * 8 * 8 * 2
