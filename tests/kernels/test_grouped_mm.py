"""Rows times the matrix of their group: against the formula, its gradient, and what does not fit."""

import pytest
import torch
from surgery.kernels.operators import grouped_mm

ENDS = [[4, 4, 10], [0, 3, 7], [10, 10, 10], [0, 0, 0]]


def made(dtype: torch.dtype = torch.float64):
    draw = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, generator=draw).to(dtype) for shape in ((10, 5), (3, 5, 7)))


def formula(rows, weights, ends):
    groups = torch.searchsorted(torch.tensor(ends), torch.arange(len(rows)), right=True)
    padded = torch.cat([weights, torch.zeros_like(weights[:1])])
    return torch.einsum("sk,skn->sn", rows, padded[groups])


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_equals_the_formula(ends):
    rows, weights = made()
    for given in (weights, weights.mT.contiguous().mT):
        torch.testing.assert_close(grouped_mm(rows, given, torch.tensor(ends)), formula(rows, weights, ends))


def test_stands_as_an_operator_with_a_gradient():
    rows, weights = (each.requires_grad_() for each in made())
    ends = torch.tensor(ENDS[0], dtype=torch.int32)
    torch.autograd.gradcheck(lambda *given: grouped_mm(*given, ends), (rows, weights))
    torch.library.opcheck(torch.ops.surgery.grouped_mm.default, (rows, weights, ends))


@pytest.mark.parametrize("ends", [[4, 3, 10], [4, 4, 11], [-1, 4, 10]], ids=str)
def test_ends_that_leave_the_rows_are_refused(ends):
    with pytest.raises(ValueError, match="ascend"):
        grouped_mm(*made(), torch.tensor(ends))


def test_shapes_that_do_not_fit_are_refused():
    rows, weights = made()
    for given in ((rows[0], weights, torch.tensor([1, 2, 3])), (rows, weights, torch.tensor([1, 2]))):
        with pytest.raises(ValueError, match="rows are"):
            grouped_mm(*given)
    with pytest.raises(ValueError, match="whole numbers"):
        grouped_mm(rows, weights, torch.ones(3))
