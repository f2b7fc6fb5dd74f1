"""`surgery::probe_select`: PyTorch and Triton against the reference; ties, NaN, limits; what it is good for."""

import pytest
import torch
from accuracy import Draw, assert_as_exact_as_eager
from surgery.kernels.cpu.probe_select import best, probed
from surgery.kernels.operators.probe_select import OPERATOR, matched_dictionary, probe_select
from surgery.kernels.reference import probe_select as reference
from surgery.kernels.triton.probe_select import probe_select as launch

# rows, d, probes, atoms, blocks, keep, shared: integers small enough that fp32 sums are exact in any order
CASES = [
    (1, 100, 32, 1, 50, 7, False),
    (3, 64, 16, 3, 16, 16, False),
    (3, 70, 40, 1, 130, 1, False),
    (20, 96, 20, 2, 70, 9, True),
    (16, 33, 3, 1, 1, 1, True),
    (1, 64, 64, 2, 33, 32, True),
]


def integers(case: tuple, dtype: torch.dtype, device: str) -> tuple:
    """Exact inputs inside parents full of NaN, and with them many equal scores."""
    rows, d, probes, atoms, blocks, keep, shared = case
    generator = torch.Generator().manual_seed(d)

    def made(*shape: int) -> torch.Tensor:
        parent = torch.full((shape[0] + 2, *(side + 3 for side in shape[1:])), float("nan"), dtype=dtype, device=device)
        inner = parent[(slice(1, -1), *(slice(0, side) for side in shape[1:]))]
        return inner.copy_(torch.randint(-1, 2, shape, generator=generator))

    return made(rows, d), made(probes, d), made(probes, atoms, blocks), keep, shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("run", [launch, probed, OPERATOR], ids=["triton", "torch", "operator"])
def test_exact(run, case, dtype, device):
    inputs = integers(case, dtype, device)
    blocks, scores = run(*inputs)
    right, sums = reference.probe_select(*inputs)
    assert blocks.dtype == torch.int32 and scores.dtype == torch.float32
    assert torch.equal(blocks, right) and torch.equal(scores, sums)


@pytest.mark.parametrize("shared", [False, True])
def test_scores_of_real_numbers(shared, device):
    def given(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [torch.randn(shape, device=device) for shape in ((5, 300), (32, 300), (32, 2, 40))]

    def draw(seed: int) -> Draw:
        inputs = given(seed)
        exact = reference.score(*(each.double() for each in inputs), shared)
        return Draw(lambda: [run(*inputs, 6, shared)[1]], [reference.score(*inputs, shared)], [exact])

    for run in (launch, OPERATOR):
        assert_as_exact_as_eager(draw, {"scores": 2}, rows=5, own=3)
        blocks, scores = run(*given(0), 6, shared)
        assert torch.equal(blocks, reference.best(scores, 6))
        again = run(*given(0), 6, shared)
        assert torch.equal(again[0], blocks) and torch.equal(again[1], scores)


@pytest.mark.parametrize("run", [launch, probed], ids=["triton", "torch"])
def test_equal_scores_go_to_the_lower_number(run, device):
    x, probes, dictionary = (torch.ones(shape, device=device) for shape in ((2, 16), (4, 16), (4, 1, 9)))
    assert run(x, probes, dictionary, 4, False)[0].tolist() == [[0, 1, 2, 3]] * 2
    dictionary[:, :, 5] = 2
    assert run(x, probes, dictionary, 4, True)[0].tolist() == [[0, 1, 2, 5]]
    x.zero_()
    assert run(x, probes, dictionary, 4, False)[0].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("run", [launch, probed], ids=["triton", "torch"])
def test_a_score_that_is_no_number_loses(run, device):
    x, probes, dictionary = (torch.ones(shape, device=device) for shape in ((2, 16), (4, 16), (4, 1, 5)))
    dictionary[:, :, 1], dictionary[:, :, 3] = float("nan"), float("inf")
    dictionary[:, :, 0] = 0
    blocks, scores = run(x, probes, dictionary, 3, False)
    assert blocks.tolist() == [[2, 3, 4]] * 2
    assert scores[:, 1].isnan().all() and scores[:, 3].isinf().all()
    assert run(x, probes, dictionary, 5, False)[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    x[0, 0] = float("nan")
    assert run(x, probes, dictionary, 2, False)[0].tolist() == [[0, 1], [2, 3]]


def test_best_of_many_rows_is_the_stable_sort():
    scores = torch.randint(0, 4, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    scores[::7, ::3] = float("nan")
    for keep in (1, 5, 30, 64):
        assert torch.equal(best(scores, keep), reference.best(scores, keep))


def test_fp64_stays_fp64():
    x, probes, dictionary = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 30), (8, 30), (8, 1, 12)))
    blocks, scores = probe_select(x, probes, dictionary[:, 0], 3)
    assert scores.dtype == torch.float64
    assert torch.equal(blocks, reference.probe_select(x, probes, dictionary, 3, False)[0])


@pytest.mark.parametrize(
    ("shapes", "keep", "said"),
    [
        (((2, 30), (8, 30), (8, 12)), 0, "keep=0: there are 12 blocks"),
        (((2, 30), (8, 30), (8, 12)), 13, "keep=13: there are 12 blocks"),
        (((2, 30), (8, 31), (8, 12)), 3, r"expected \[T, d\] and \[m, d\]"),
        (((2, 30), (8, 30), (7, 12)), 3, r"expected \[8, atoms, blocks\]"),
        (((30,), (8, 30), (8, 12)), 3, r"expected \[T, d\]"),
    ],
)
def test_refusals(shapes, keep, said):
    with pytest.raises(ValueError, match=said):
        probe_select(*(torch.zeros(shape) for shape in shapes), keep)


def test_opcheck_compile_export(device):
    x, probes, dictionary = (torch.randn(shape, device=device) for shape in ((4, 30), (8, 30), (8, 2, 12)))
    torch.library.opcheck(OPERATOR, (x, probes, dictionary, 3, False))
    torch.library.opcheck(OPERATOR, (x, probes, dictionary, 3, True))

    class Router(torch.nn.Module):
        def forward(self, x):
            return probe_select(x, probes, dictionary, 3)

    expected = Router()(x)
    compiled = torch.compile(Router(), fullgraph=True, backend="aot_eager")(x)
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    exported = torch.export.export(Router(), (x,), dynamic_shapes=(rows,), strict=False).module()
    for ours, right in zip((*compiled, *exported(x)), (*expected, *expected), strict=True):
        assert torch.equal(ours, right)
    assert exported(x[:2])[0].shape == (2, 3)


@pytest.mark.parametrize("shared", [False, True])
def test_scores_have_gradients_and_lists_have_none(shared):
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 7), (5, 7), (5, 2, 6))]
    blocks, scores = OPERATOR(*leaves, 3, shared)
    assert not blocks.requires_grad and scores.requires_grad
    assert torch.autograd.gradcheck(lambda *each: OPERATOR(*each, 3, shared)[1], leaves)
    traced = torch.compile(lambda *each: OPERATOR(*each, 3, shared)[1], fullgraph=True, backend="aot_eager")
    ours, plain = (torch.autograd.grad(made.sum(), leaves) for made in (traced(*leaves), scores))
    assert all(map(torch.allclose, ours, plain))


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        probe_select(torch.randn(4, 30), torch.randn(8, 30), torch.randn(8, 2, 12), 3)
    assert counter.get_total_flops() == 2 * 4 * (8 * 30 + 8 * 2 * 12)


def test_finds_the_blocks_that_answer():
    """Of 16 blocks of weights 3 answer to each x: a matched dictionary finds four times as many as chance."""
    torch.manual_seed(0)
    d, block, blocks, strong = 256, 8, 16, 3
    rows = torch.randn(blocks * block - 3, d) / d**0.5
    found = 0
    for _ in range(20):
        right = torch.randperm(blocks - 1)[:strong]
        x = sum(rows[number * block : (number + 1) * block].sum(0) for number in right.tolist()) * 3
        probes = torch.randn(64, d)
        chosen, scores = probe_select(x[None], probes, matched_dictionary(probes, rows, block), strong)
        assert scores.shape == (1, blocks)
        found += len(set(chosen[0].tolist()) & set(right.tolist()))
    assert found > 4 * 20 * strong * strong / blocks


def test_a_matched_dictionary_estimates_products():
    torch.manual_seed(0)
    probes, rows, x = torch.randn(4000, 20), torch.randn(10, 20), torch.randn(20)
    atoms = matched_dictionary(probes, rows, 4)
    assert atoms.shape == (4000, 4, 3) and atoms[:, 2:, 2].eq(0).all()
    estimate = (probes @ x) @ atoms.transpose(1, 2).flatten(1)
    spread = x.norm() * rows.norm(dim=1).max() / 4000**0.5
    assert (estimate[:10] - rows @ x).abs().max() < 5 * spread
