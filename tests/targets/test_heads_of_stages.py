"""Heads where layers differ in them, or share what makes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.anatomy import inspect
from surgery.diagnostics import RefusalError

X = torch.randn(2, 6, 8)
QUICK = {"timing": False, "compiled": False, "controls": False}


class Attention(nn.Module):
    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def attend(self, x, causal=False):
        q, k, v = (each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)

    def forward(self, x):
        return x + self.out(self.attend(x))


class Both(Attention):
    """Two attentions of the same queries, keys and values."""

    def forward(self, x):
        return x + self.out(self.attend(x) + self.attend(x, causal=True))


class Windows(Attention):
    """Heads before windows of tokens, [batch, heads, windows, length, head dim]."""

    def __init__(self, heads: int, fixed: bool = True):
        super().__init__(heads)
        self.positions = nn.Parameter(torch.zeros(6 if fixed else 1, 8))

    def forward(self, x):
        x = x + self.positions
        parts = (each(x).reshape(len(x), 3, -1, self.heads, 8 // self.heads) for each in (self.q, self.k, self.v))
        q, k, v = (each.permute(0, 3, 1, 2, 4) for each in parts)
        mixed = ((q @ k.mT).softmax(-1) @ v).permute(0, 2, 3, 1, 4)
        return x + self.out(mixed.reshape(x.shape))


def stages(*heads: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*map(Attention, heads)).eval()


def test_a_stage_of_one_head_keeps_it_and_the_others_are_cut():
    result = surgery.compile(stages(1, 2, 4), "prune 50% of attention heads", example_inputs=(X,), **QUICK)
    assert [action["after"] for action in result.report["actions"]] == [{"heads": 1}, {"heads": 2}]
    assert result.report["actions"][0]["notes"] == ["one head, which stays: `0`"]
    assert all(claim["holds"] for claim in result.report["parity"])


def test_where_all_have_one_head_none_can_go():
    with pytest.raises(RefusalError, match="`0` has one head, which cannot go"):
        surgery.compile(stages(1, 1), "prune 50% of attention heads", example_inputs=(X,), **QUICK)


def test_attentions_that_share_their_layers_are_cut_as_one():
    torch.manual_seed(0)
    result = surgery.compile(Both(4).eval(), "prune 50% of attention heads", example_inputs=(X,), **QUICK)
    assert [action["after"] for action in result.report["actions"]] == [{"heads": 2}]
    assert all(claim["holds"] for claim in result.report["parity"])
    assert result.module.q.weight.shape == (4, 8)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed length", "free length"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_in_front_of_windows_are_told_from_these(heads, fixed):
    (site,) = (site for site in inspect(Windows(heads, fixed).eval(), (X,)).sites if site.kind == "attention")
    assert (site.heads, site.kv_heads, site.head_dim) == (heads, heads, 8 // heads)
