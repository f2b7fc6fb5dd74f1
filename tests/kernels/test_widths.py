"""Values wider or narrower than keys, as multi-head latent attention has them: outputs and gradients against the formula."""

import pytest
import torch
from surgery.kernels.layouts.rules import Rules
from surgery.kernels.operators import gated_attention, pattern_attention

RULES = Rules.of(4, 4, columns=[[0]] * 4, distances=[[0, 1]] * 4)
WIDTHS = [(8, 5), (8, 16)]


def inputs(dim: int, width: int, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 19, dim), torch.randn(2, 2, 19, dim), torch.randn(2, 2, 19, width)
    return [each.to(dtype).requires_grad_() for each in (q, k, v)]


def by_hand(q, k, v, bias=None, kept=None, normalize="all"):
    k, v = (each.repeat_interleave(2, 1) for each in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    seen = torch.ones(19, 19, dtype=torch.bool).tril()
    kept = scores + bias.view(4, 1, 1) > 0 if kept is None else kept
    over = seen if normalize == "all" else seen & kept
    return (scores.masked_fill(~over, float("-inf")).softmax(-1) * kept) @ v


def assert_same(mine, theirs, mine_in, their_in):
    assert mine.shape == theirs.shape
    weights = torch.linspace(-1, 1, mine.numel(), dtype=mine.dtype).view_as(mine)
    grads = [torch.autograd.grad((out * weights).sum(), given) for out, given in ((mine, mine_in), (theirs, their_in))]
    for ours, exact in zip((mine, *grads[0]), (theirs, *grads[1]), strict=True):
        assert (ours - exact).abs().max() <= 1e-12 * exact.abs().max()


@pytest.mark.parametrize(("dim", "width"), WIDTHS)
def test_gates(dim, width):
    given, again = inputs(dim, width), inputs(dim, width)
    bias = torch.tensor([0.5, 0.0, -0.5, 3.0], dtype=torch.float64)
    made = gated_attention(*given, bias, causal=True)
    assert_same(made.out, by_hand(*again, bias=bias), given, again)
    torch.library.opcheck(
        torch.ops.surgery.gated_attention,
        (*inputs(dim, width, torch.float32), bias.float(), None, None, dim**-0.5, True, "hard", 1.0, True),
    )


@pytest.mark.parametrize(("dim", "width"), WIDTHS)
@pytest.mark.parametrize(("normalize", "kind"), [("kept", "block"), ("kept", "edge"), ("all", "edge"), ("all", "block")])
def test_patterns(dim, width, normalize, kind):
    given, again = inputs(dim, width), inputs(dim, width)
    mine = pattern_attention(*given, RULES, causal=True, normalize=normalize, kind=kind)
    exact = by_hand(*again, kept=RULES.mask(19, 19, True), normalize=normalize)
    assert_same(mine, exact, given, again)


def test_a_step_of_decoding_and_padding():
    q, k, v = inputs(8, 5, torch.float32)
    seen = torch.ones(2, 19, dtype=torch.bool)
    seen[1, :6] = False
    mask = (seen[:, None, None] & torch.ones(19, 19, dtype=torch.bool).tril()).expand(2, 1, 19, 19)
    whole = pattern_attention(q, k, v, RULES, mask=mask, causal=True)
    last = pattern_attention(q[:, :, -1:], k, v, RULES, mask=mask[:, :, -1:], causal=True)
    assert whole.shape[-1] == last.shape[-1] == 5
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=0, atol=2e-6)
    assert (whole[1, :, :6] == 0).all() and (whole[1, :, 6:] != 0).any()
