"""`surgery::pattern_attention`: rules against a mask written out, at any length, with and without padding."""

import pytest
import torch
from surgery.kernels.layouts.rules import Rules
from surgery.kernels.operators import pattern_attention, seen_keys
from surgery.kernels.operators.pattern_layouts import Layouts
from torch.utils.flop_counter import FlopCounterMode

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-13}
RULES = {
    "sink and window": lambda: Rules.of(4, 16, columns=[[0]] * 4, distances=[[0, 1]] * 4),
    "one per head": lambda: Rules.of(4, 16, columns=[[], [1], [0, 4], []], distances=[[0], [0, 3], [0], [0, 1, 2]]),
    "blocks": lambda: Rules.of(
        4, 16, distances=[[0]] * 4, entries=torch.tensor([[0, 3, 1], [1, 4, 0], [3, 5, 2]]), length=96
    ),
    "narrow blocks": lambda: Rules.of(4, 5, columns=[[0], [2], [], []], distances=[[0, 2]] * 4),
    "edges": lambda: Rules.of(4, 1, distances=[[0]] * 4, entries=torch.tensor([[0, 9, 1], [2, 80, 3]]), length=96),
}


def inputs(queries=80, keys=80, dtype=torch.float32, kv_heads=2, dim=16, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(2, 4, queries, dim, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, keys, dim, dtype=dtype) for _ in range(2))
    return q, k, v


def written_out(q, k, v, kept, seen=None, normalize="kept"):
    """In float64; kept [H, Sq, Sk], seen to be broadcast to it, True where a key is seen at all."""
    q, k, v = (each.double() for each in (q, k, v))
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    seen = torch.ones_like(kept) if seen is None else seen
    over = seen if normalize == "all" else seen & kept
    weights = scores.masked_fill(~over, float("-inf")).softmax(-1).nan_to_num() * kept
    return weights @ v.repeat_interleave(group, 1)


def assert_close(mine, exact, dtype):
    assert torch.isfinite(mine).all()
    assert (mine.double() - exact).abs().max() <= CLOSE[dtype] * exact.abs().max()


def triangle(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@pytest.mark.parametrize("kind", ["block", "edge"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_mask_they_say(name, causal, kind):
    rules = RULES[name]()
    for queries, keys in ((80, 80), (33, 80), (1, 80), (3, 78), (7, 7)):
        q, k, v = inputs(queries, keys)
        kept = by_hand(rules, queries, keys, causal)
        assert torch.equal(rules.mask(queries, keys, causal), kept)
        assert torch.equal(rules.blocks(queries, keys, causal).dense_mask(), kept)
        mine = pattern_attention(q, k, v, rules, causal=causal, kind=kind)
        assert_close(mine, written_out(q, k, v, kept), torch.float32)


def by_hand(rules, queries, keys, causal):
    """The docstring of `Rules`, pair by pair."""
    kept = torch.zeros(rules.heads, queries, keys, dtype=torch.bool)
    columns, far = rules.columns.shape[1], rules.distances.shape[1]
    entries = {tuple(entry) for entry in rules.entries.tolist()}
    for head in range(rules.heads):
        for i in range(queries):
            for j in range(keys):
                query = i + keys - queries
                r, c = query // rules.block, j // rules.block
                near = r - c + far // 2
                found = c < columns and rules.columns[head, c] or 0 <= near < far and rules.distances[head, near]
                kept[head, i, j] = bool(found or (head, r, c) in entries) and (j <= query or not causal)
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind, normalize", [("block", "kept"), ("edge", "kept"), ("edge", "all"), ("block", "all")])
def test_padding_is_no_more_than_a_mask_of_keys(kind, normalize, dtype):
    rules, (q, k, v) = RULES["one per head"](), inputs(dtype=dtype)
    for hidden in (slice(70, 80), slice(0, 20)):
        real = torch.ones(2, 1, 1, 80, dtype=torch.bool)
        real[1, :, :, hidden] = False
        seen = real & triangle(80, 80)
        assert seen_keys(seen, True).tolist() == real[:, 0, 0].int().tolist()
        mine = pattern_attention(q, k, v, rules, mask=seen, causal=True, normalize=normalize, kind=kind)
        exact = written_out(q, k, v, rules.mask(80, 80, True), seen, normalize)
        assert_close(mine, exact, dtype)
        added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        again = pattern_attention(q, k, v, rules, mask=added, causal=True, normalize=normalize, kind=kind)
        assert_close(again, exact, dtype)


def test_a_mask_that_says_more_is_applied_pair_by_pair():
    rules, (q, k, v) = RULES["sink and window"](), inputs()
    narrow = triangle(80, 80) & ~triangle(80, 80).tril(-20)
    assert (seen_keys(narrow[None, None], True) == 2).all()
    mine = pattern_attention(q, k, v, rules, mask=narrow[None, None], causal=True)
    assert_close(mine, written_out(q, k, v, rules.mask(80, 80, True), narrow), torch.float32)
    bias = torch.randn(2, 1, 80, 80)
    assert (seen_keys(bias, False) == 2).all()
    assert (seen_keys(torch.ones(2, 1, 1, 80, dtype=torch.bool), False) == 1).all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind, normalize", [("block", "kept"), ("edge", "kept"), ("edge", "all"), ("block", "all")])
def test_gradients_are_those_of_the_mask_written_out(kind, normalize, padded):
    rules, leaves = RULES["blocks"](), [each.requires_grad_() for each in inputs(dtype=torch.float64)]
    seen = triangle(80, 80).expand(2, 1, -1, -1).clone()
    if padded:
        seen[1, :, :, 72:] = False
    grad = torch.randn(2, 4, 80, 16, dtype=torch.float64)
    mask = seen if padded else None
    mine = pattern_attention(*leaves, rules, mask=mask, causal=True, normalize=normalize, kind=kind)
    exact = written_out(*leaves, rules.mask(80, 80, True), seen, normalize)
    for ours, theirs in zip(
        torch.autograd.grad(mine, leaves, grad), torch.autograd.grad(exact, leaves, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_operator_is_checked_compiled_and_exported():
    rules, (q, k, v) = RULES["one per head"](), inputs()
    leaves = [each.requires_grad_() for each in (q, k, v)]
    keys = torch.ones(2, 80, dtype=torch.uint8)
    mask = triangle(80, 80).expand(2, 1, -1, -1)
    call = torch.ops.surgery.pattern_attention.default
    torch.library.opcheck(call, (*leaves, rules.tensors(), None, None, 16, 0, True, 0.25, "kept", "block"))
    torch.library.opcheck(call, (*leaves, rules.tensors(), mask, keys, 16, 0, True, 0.25, "all", "edge"))
    torch.library.opcheck(torch.ops.surgery.seen_keys.default, (mask, True))

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return pattern_attention(q, k, v, rules, causal=True)

    eager = Module()(q, k, v)
    assert torch.equal(torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")(q, k, v), eager)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    given = tuple(each.detach() for each in (q, k, v))
    exported = torch.export.export(Module(), given, dynamic_shapes=({0: batch, 2: length},) * 3, strict=False)
    shorter = tuple(each[:1, :, :50] for each in given)
    assert torch.equal(exported.module()(*shorter), Module()(*shorter))


def test_what_does_not_fit_is_refused():
    q, k, v = inputs(100, 100)
    with pytest.raises(ValueError, match="made for 96 keys and holds single blocks, got 100"):
        pattern_attention(q, k, v, RULES["blocks"](), causal=True)
    with pytest.raises(ValueError, match="the rules are for 4 heads, q has 2"):
        pattern_attention(q[:, :2], k, v, RULES["edges"](), causal=True)
    with pytest.raises(ValueError, match="a length goes with entries"):
        Rules.of(2, 16, entries=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not 'some'"):
        pattern_attention(*inputs(), RULES["edges"](), normalize="some")


def test_flops_are_those_of_the_pairs_kept():
    rules, (q, k, v) = RULES["sink and window"](), inputs()
    with FlopCounterMode(display=False) as counter:
        pattern_attention(q, k, v, rules, causal=True)
    assert counter.get_total_flops() == 4 * 16 * 2 * int(rules.mask(80, 80, True).sum())


def test_layouts_are_made_once_and_forgotten_for_room():
    rules, layouts = RULES["sink and window"](), Layouts()
    first = layouts.get(rules, 80, 80, True, "block")
    assert layouts.get(RULES["sink and window"](), 80, 80, True, "block") is first
    assert layouts.get(rules, 64, 64, True, "block") is not first
    rules.columns[0, 0] = False
    assert layouts.get(rules, 80, 80, True, "block") is not first
    small = Layouts(room=1)
    assert small.get(rules, 80, 80, True, "block") is not small.get(rules, 80, 80, True, "block")
