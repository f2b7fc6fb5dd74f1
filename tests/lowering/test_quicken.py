"""A quickened graph computes the same bits, follows its tensors, and steps aside for compilers."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from surgery.anatomy import capture
from surgery.lowering import quicken
from surgery.lowering.quicken import DOORS
from surgery.passes.graph_copy import copy_graph_module


class Strange(nn.Module):
    """Most operators that have a quick door, tied weights, a buffer and a list as output."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.qkv = nn.Linear(12, 36)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids, x):
        x = self.norm(self.table(ids) * self.scale + x - 1)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        scores = torch.softmax((q @ k.transpose(-1, -2)) / 2, -1)
        mixed = mixed + torch.cat([nn.functional.gelu(mixed), nn.functional.silu(mixed)], -1).chunk(2, -1)[1]
        return self.head(mixed), [*scores.chunk(2, 1)], mixed.pow(2).mean(-1, keepdim=True)


def inputs(batch=3):
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(11, (batch, 5), generator=generator), torch.randn(batch, 5, 12, generator=generator)


@pytest.fixture
def graph_module():
    torch.manual_seed(0)
    return capture(Strange().eval(), inputs(2))


def leaves(output):
    return torch.utils._pytree.tree_leaves(output)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("batch", [2, 7])
def test_bits_and_structure_are_the_same(graph_module, batch):
    plain, quick = copy_graph_module(graph_module), quicken(copy_graph_module(graph_module))
    assert same(quick(*inputs(batch)), plain(*inputs(batch)))
    assert type(quick(*inputs(batch))[1]) is type(plain(*inputs(batch))[1])
    assert str(quick.graph) == str(plain.graph)
    assert set(quick.state_dict()) == set(plain.state_dict())


def test_most_calls_take_a_quick_door(graph_module):
    targets = [node.target for node in graph_module.graph.nodes if node.op == "call_function"]
    assert sum(target in DOORS for target in targets) > len(targets) / 2


def test_tensors_that_change_are_seen(graph_module):
    quick, plain = quicken(graph_module), copy_graph_module(graph_module)
    state = {name: torch.full_like(tensor, 0.1) for name, tensor in quick.state_dict().items()}
    quick.load_state_dict(state)
    assert same(quick(*inputs()), plain(*inputs()))
    quick.norm.weight = nn.Parameter(torch.full_like(quick.norm.weight, 3.0))
    plain.norm.weight = quick.norm.weight
    assert same(quick(*inputs()), plain(*inputs()))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in quick.named_parameters()}
    assert functional_call(quick, zeros, inputs())[0].abs().max() == 0


def test_gradients_reach_every_parameter(graph_module):
    quick = quicken(graph_module)
    sum(leaf.sum() for leaf in leaves(quick(*inputs()))).backward()
    assert all(parameter.grad is not None for parameter in quick.parameters())


def test_compilers_see_the_graph_as_it_was(graph_module):
    quick = quicken(graph_module)
    compiled = torch.compile(quick, backend="eager", fullgraph=True)
    assert same(compiled(*inputs()), quick(*inputs()))


def test_a_copy_and_an_edit_stay_right(graph_module):
    quick = quicken(graph_module)
    assert same(copy.deepcopy(quick)(*inputs()), quick(*inputs()))
    node = next(node for node in quick.graph.nodes if node.target is torch.ops.aten.sub.Tensor)
    node.args = (node.args[0], 5)
    quick.recompile()
    edited = quick(*inputs())
    assert same(quicken(quick)(*inputs()), edited)


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, flag=True, y=None, scale=1.0):
        return self.down(nn.functional.gelu(self.up(x))) * scale + (0 if y is None else y)


def test_options_that_were_made_constants_need_not_be_given(tmp_path):
    import surgery

    x, y = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    example = {"x": x[:2], "flag": False, "y": y[:2], "scale": 2.0}
    result = surgery.compile(Flagged().eval(), "prune 50% of mlp channels", example_inputs=example, timing=False)
    loaded = surgery.load(result.save(tmp_path / "out"))
    for module in (result.module, loaded, torch.compile(loaded, dynamic=False)):
        wanted = result.module(x, False, y, 2.0)
        for given in (module(x=x, y=y), module(x, y=y), module(x, True, y), module(x=x, flag=False, y=y, scale=2.0)):
            torch.testing.assert_close(given, wanted)
        with pytest.raises(TypeError, match="'y'"):
            module(x=x)
