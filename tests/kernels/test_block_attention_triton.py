"""The Triton kernels of block attention against fp64, in the interpreter or on a GPU: values, gradients, memory."""

import mmap
from dataclasses import dataclass

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager, softmax_terms
from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.operators.block_attention import block_attention

BF16 = [torch.bfloat16] if torch.cuda.is_available() else []  # the interpreter's bf16 products are wrong


@dataclass(frozen=True)
class Scene:
    """heads: (batch, query heads, key heads); rows: (Sq, Sk); patterns: how many masks."""

    name: str
    heads: tuple[int, int, int]
    rows: tuple[int, int]
    dim: int
    block: tuple[int, int]
    mask: str
    patterns: int = 1


SCENES = (
    Scene("one query, one key", (1, 1, 1), (1, 1), 32, (16, 16), "all"),
    Scene("one query, many keys, MQA", (1, 2, 1), (1, 70), 64, (32, 32), "random", 2),
    Scene("shorter than a block", (2, 2, 2), (7, 9), 80, (128, 128), "random"),
    Scene("not divisible, fewer queries than keys", (1, 2, 1), (150, 201), 64, (64, 64), "blocks", 2),
    Scene("narrow blocks of many queries", (1, 1, 1), (65, 40), 32, (64, 16), "blocks"),
    Scene("wide blocks of few queries", (1, 1, 1), (20, 140), 32, (16, 128), "blocks"),
    Scene("no edges", (1, 2, 1), (20, 40), 32, (16, 32), "none"),
    Scene("all edges", (1, 1, 1), (130, 256), 128, (128, 128), "all"),
    Scene("causal, 16 query heads to a key head", (1, 16, 1), (37, 37), 32, (32, 32), "causal"),
    Scene("causal, more keys than queries", (1, 4, 1), (30, 70), 80, (16, 32), "causal"),
    Scene("causal, more queries than keys: empty rows", (1, 1, 1), (70, 30), 64, (32, 32), "causal"),
    Scene("empty rows and columns, wide head", (1, 2, 1), (40, 70), 256, (32, 64), "holes", 2),
    Scene("a pattern per batch and head", (2, 2, 1), (33, 50), 16, (32, 32), "holes", 4),
    Scene("an odd head dim", (1, 1, 1), (40, 40), 20, (16, 32), "random"),
)


def mask_of(scene: Scene) -> torch.Tensor:
    shape, block = (scene.patterns, *scene.rows), scene.block
    if scene.mask == "causal":
        return Blocks.causal(*scene.rows, block).dense_mask()
    if scene.mask in ("none", "all"):
        return torch.full(shape, scene.mask == "all")
    kept = torch.rand(shape) < 0.4
    if scene.mask == "holes":
        kept[:, 3:20], kept[..., 5:11] = False, False
    if scene.mask == "blocks":
        grid = (scene.patterns, -(-scene.rows[0] // block[0]), -(-scene.rows[1] // block[1]))
        spread = torch.rand(grid).repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
        spread = spread[:, : scene.rows[0], : scene.rows[1]]
        kept = (kept | (spread > 0.6)) & (spread > 0.2)
    return kept


def guarded(shape, dtype, device) -> torch.Tensor:
    """[B, H, S, D] as models have it: a transposed slice of a larger tensor, all else of it NaN."""
    batch, heads, rows, dim = shape
    parent = torch.full((batch, rows + 3, heads + 1, dim + 8), float("nan"), dtype=dtype, device=device)
    inner = parent[:, 2 : rows + 2, :heads, 8 : dim + 8].transpose(1, 2)
    return inner.copy_(torch.randn(shape, dtype=torch.float32).to(dtype))


def inputs_of(scene: Scene, dtype, device) -> list[torch.Tensor]:
    """q, k, v and the gradient of out."""
    (batch, heads, key_heads), (queries, keys) = scene.heads, scene.rows
    shapes = [(batch, heads, queries), (batch, key_heads, keys), (batch, key_heads, keys), (batch, heads, queries)]
    return [guarded((*shape, scene.dim), dtype, device) for shape in shapes]


def dense(q, k, v, mask, scale):
    """Masked attention as eager PyTorch writes it; a row without keys is 0."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if mask.shape[0] not in (1, q.shape[1]):
        mask = mask.view(q.shape[0], q.shape[1], *mask.shape[1:])
    alive = mask.any(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask & alive, float("-inf"))
    return scores.softmax(-1).masked_fill(~alive, 0.0) @ v


def with_gradients(attend, q, k, v, grad) -> list[torch.Tensor]:
    leaves = [each.detach().requires_grad_() for each in (q, k, v)]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


TIMES = {"out": 2, "dq": 3, "dk": 3, "dv": 3}


def draw_of(ours, q, k, v, grad, mask, scale) -> Draw:
    """Beside `ours`, which computes out, dq, dk and dv: the same by eager in this dtype, and in fp64."""
    wide = [each.double() for each in (q, k, v, grad)]
    exact = with_gradients(lambda *each: dense(*each, mask, scale), *wide)
    eager = with_gradients(lambda *each: dense(*each, mask, scale), q, k, v, grad)
    unit = torch.eye(k.shape[2], dtype=torch.float64, device=k.device).expand(*k.shape[:2], -1, -1)
    weights = dense(*wide[:2], unit, mask, scale)
    scores = (wide[0] @ wide[1].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)) * scale
    lse = scores.masked_fill(weights == 0, float("-inf")).logsumexp(-1)
    return Draw(ours, eager, exact, [None, *softmax_terms(weights, (q, k, v), wide[3], exact[0], lse, scale)])


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    torch.manual_seed(0)


def half_worthy(scene: Scene) -> bool:
    return scene.name in ("not divisible, fewer queries than keys", "shorter than a block", "all edges") or (
        scene.dim in (16, 256)
    )


@pytest.mark.parametrize(
    "scene, dtype",
    [(scene, torch.float32) for scene in SCENES]
    + [(scene, dtype) for scene in SCENES if half_worthy(scene) for dtype in (torch.float16, *BF16)],
    ids=lambda each: each.name if isinstance(each, Scene) else str(each).removeprefix("torch."),
)
def test_values_and_gradients(scene, dtype, device):
    def draw(seed: int) -> Draw:
        torch.manual_seed(seed)
        inputs = inputs_of(scene, dtype, device)
        mask = mask_of(scene).to(device)
        return draw_of(lambda: ours(*inputs, mask), *inputs, mask, scene.dim**-0.5)

    def ours(q, k, v, grad, mask) -> list[torch.Tensor]:
        blocks = Blocks.from_mask(mask, scene.block)
        made = with_gradients(lambda *each: block_attention(*each, blocks), q, k, v, grad)
        empty = ~(mask if mask.shape[0] in (1, q.shape[1]) else mask.view(*q.shape[:2], *mask.shape[1:])).any(-1)
        for each in made[:2]:  # out and dq of rows without keys
            assert each.dtype == dtype and not each[empty.expand(q.shape[:3])].any()
        return made

    rows = scene.heads[0] * scene.heads[1] * scene.rows[0]
    assert_as_exact_as_eager(draw, TIMES, rows, own=-(-8 // rows))


def test_log_sum_exp(device):
    scene = Scene("", (1, 4, 2), (50, 70), 32, (32, 64), "holes", 4)
    q, k, v, _ = inputs_of(scene, torch.float32, device)
    mask = mask_of(scene).to(device)
    _, lse = block_attention(q, k, v, Blocks.from_mask(mask, scene.block), scale=0.3, return_lse=True)
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    truth = scores.masked_fill(~mask, float("-inf")).logsumexp(-1)
    assert truth.isinf().any() and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), truth, rtol=0, atol=4e-6)  # a few roundings of values up to 8


def test_gradients_of_the_log_sum_exp(device):
    scene = Scene("", (1, 4, 2), (50, 70), 32, (32, 64), "holes", 4)
    q, k, v, grad = inputs_of(scene, torch.float32, device)
    blocks, weight = Blocks.from_mask(mask_of(scene).to(device), scene.block), torch.randn(1, 4, 50, device=device)
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * 32**-0.5

    def loss(q, k):
        lse = block_attention(q, k, v, blocks, return_lse=True)[1]
        return (lse.masked_fill(lse.isinf(), 0) * weight).sum()

    leaves = [each.detach().requires_grad_() for each in (q, k)]
    made = torch.autograd.grad(loss(*leaves), leaves)
    share = scores.masked_fill(~blocks.dense_mask(), float("-inf")).softmax(-1).nan_to_num(0)
    share = share * weight[..., None] * 32**-0.5
    exact = share @ k.double().repeat_interleave(2, 1), (share.mT @ q.double()).unflatten(1, (2, 2)).sum(2)
    for mine, truth in zip(made, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(device):
    """exp of scores up to 1000 is far beyond fp32: only differences to a row's peak or sum may be taken.

    Gradients are held to be finite only: they are made from the forward's sum, whose fp32 rounding is 6e-5 here.
    """
    scene = Scene("", (1, 1, 1), (40, 100), 64, (32, 32), "random")
    q, k, v, grad = inputs_of(scene, torch.float32, device)
    mask = mask_of(scene).to(device)
    blocks = Blocks.from_mask(mask, scene.block)
    out, *grads = with_gradients(lambda *each: block_attention(*each, blocks, scale=40.0), q, k, v, grad)
    eager, truth = (dense(*each, mask, 40.0) for each in ((q, k, v), (q.double(), k.double(), v.double())))
    assert (out - truth).abs().max() <= 2 * (eager - truth).abs().max()
    assert all(each.isfinite().all() for each in grads)


def test_two_runs_give_the_same_bits(device):
    scene = Scene("", (1, 2, 1), (70, 70), 32, (32, 32), "blocks", 2)
    q, k, v, grad = inputs_of(scene, torch.float32, device)
    blocks = Blocks.from_mask(mask_of(scene).to(device), scene.block)
    first, second = (with_gradients(lambda *each: block_attention(*each, blocks), q, k, v, grad) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_packed_sequences_with_empty_ones(device):
    """Lengths of queries 5, 0, 20, 3 and of keys 9, 12, 0, 30: the third has queries that see nothing."""
    query_ends, key_ends = [0, 5, 5, 25, 28], [0, 9, 21, 21, 51]
    blocks = Blocks.segments(query_ends, key_ends, (16, 32)).to(device)
    q, k, v, grad = inputs_of(Scene("", (1, 2, 1), (28, 51), 32, (16, 32), ""), torch.float32, device)
    out, dq, dk, dv = with_gradients(lambda *each: block_attention(*each, blocks), q, k, v, grad)
    assert not out[:, :, 5:25].any() and not dq[:, :, 5:25].any() and not dk[:, :, 9:21].any()
    for index in (0, 3):
        rows, columns = slice(*query_ends[index : index + 2]), slice(*key_ends[index : index + 2])
        alone = [each[:, :, place].contiguous() for each, place in ((q, rows), (k, columns), (v, columns), (grad, rows))]
        whole = torch.ones(1, alone[0].shape[2], alone[1].shape[2], dtype=torch.bool, device=device)
        by_itself = Blocks.from_mask(whole, (16, 32))
        expected = with_gradients(lambda *each: block_attention(*each, by_itself), *alone)
        for mine, theirs in zip((out[:, :, rows], dq[:, :, rows], dk[:, :, columns], dv[:, :, columns]), expected):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0)])
def test_nothing_at_all(queries, keys, device):
    q, k, v, grad = inputs_of(Scene("", (1, 2, 1), (queries, keys), 32, (16, 32), ""), torch.float32, device)
    blocks = Blocks.segments([0, queries], [0, keys], (16, 32)).to(device)
    for each in with_gradients(lambda *each: block_attention(*each, blocks), q, k, v, grad):
        assert not each.any()


def test_last_dim_need_not_be_contiguous(device):
    blocks = Blocks.from_mask(torch.rand(1, 20, 40, device=device) < 0.5, (16, 32))
    apart = [torch.randn(1, 1, rows, 64, device=device)[..., ::2] for rows in (20, 40, 40, 20)]
    beside = [each.contiguous() for each in apart]
    ours, expected = (with_gradients(lambda *each: block_attention(*each, blocks), *each) for each in (apart, beside))
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


STRIDE = 2**30 + 16
FAR = {"rows": (16, 16, STRIDE), "heads": (16, STRIDE, 32), "batch": (STRIDE, 16, 32)}


@pytest.mark.parametrize("which", FAR)
def test_offsets_past_two_to_the_31(which, device):
    """Three strides of 2^30 elements: in 32 bits the fourth row, head or batch would lie before the first."""
    place = {"batch": 0, "heads": 1, "rows": 2}[which]
    shape = [1, 1, 1, 16]
    shape[place] = 4
    values = [torch.randn(shape, device=device).half() for _ in range(4)]
    room = empty_room(3 * STRIDE + 64, device)
    far = room.as_strided(shape, (*FAR[which], 1))
    blocks = Blocks.from_mask(torch.ones(1, shape[2], shape[2], dtype=torch.bool, device=device), (16, 32))
    q, k, v, grad = values
    near = with_gradients(lambda *each: block_attention(*each, blocks), q, k, v, grad)
    for index in range(4):
        moved = list(values)
        moved[index] = far.copy_(values[index])
        ours = with_gradients(lambda *each: block_attention(*each, blocks), *moved)
        assert all(torch.equal(one, other) for one, other in zip(ours, near, strict=True)), "qkvg"[index]


def empty_room(elements: int, device: str) -> torch.Tensor:
    """fp16 zeros; on a CPU pages that are never touched take no memory."""
    if device != "cpu":
        return torch.zeros(elements, dtype=torch.float16, device=device)
    pages = mmap.mmap(-1, 2 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.float16)


@pytest.mark.parametrize(
    "dim, dtype, block, reason",
    [
        (300, torch.float32, (16, 32), "head dim 300 is over 256"),
        (64, torch.float64, (16, 32), "dtype torch.float64"),
        (64, torch.float32, (8, 32), "blocks of 8x32"),
        (64, torch.float32, (128, 128), None),
        (20, torch.float16, (16, 128), None),
    ],
)
def test_says_what_it_cannot_take(dim, dtype, block, reason, device):
    from surgery.kernels.triton._blocks import refuse_triton

    said = refuse_triton(torch.zeros(1, 1, 4, dim, dtype=dtype, device=device), block)
    assert said is None if reason is None else reason in said
