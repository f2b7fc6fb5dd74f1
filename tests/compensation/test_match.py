"""A cut network follows the whole one: only where it may, only downhill, and the same way every time."""

import pytest
import torch
from torch import nn

from surgery.compensation import match


class Tiny(nn.Module):
    """y = B tanh(A x)."""

    def __init__(self, width: int, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.into = nn.Parameter(torch.randn(width, 4, generator=draw) / 2)
        self.out = nn.Parameter(torch.randn(3, width, generator=draw) / 2)

    def forward(self, x):
        return torch.tanh(x @ self.into.T) @ self.out.T


def pool(count: int = 200):
    return {"x": torch.randn(count, 4, generator=torch.Generator().manual_seed(1))}


def test_the_student_comes_closer_and_says_how_close():
    teacher, student = Tiny(6), Tiny(4, seed=3)
    found = match(student, teacher, list(student.parameters()), pool(), steps=80, batch=32, rate=0.02)
    held_out = pool()["x"][7::8]
    with torch.no_grad():
        wanted, got = teacher(held_out), student(held_out)
    assert found.after < 0.5 * found.before
    assert found.after == pytest.approx(float((got - wanted).square().sum() / wanted.square().sum()))


def test_only_the_named_parameters_move():
    teacher, student = Tiny(6), Tiny(4, seed=3)
    still = student.into.detach().clone()
    student.into.requires_grad_(False)
    match(student, teacher, [student.out], pool(), steps=5)
    assert torch.equal(student.into, still) and not student.into.requires_grad
    assert student.out.requires_grad and student.out.grad is None
    assert not torch.equal(student.out, Tiny(4, seed=3).out)


@pytest.mark.parametrize("rate", [1e4, float("nan")])
def test_what_makes_it_worse_is_undone(rate):
    teacher, student = Tiny(6), Tiny(6)
    with torch.no_grad():
        student.out += 1e-3
    first = [parameter.detach().clone() for parameter in student.parameters()]
    found = match(student, teacher, list(student.parameters()), pool(), steps=3, rate=rate)
    assert found.after == found.before
    assert all(torch.equal(was, now) for was, now in zip(first, student.parameters(), strict=True))


def test_the_same_seed_gives_the_same_bits():
    results = []
    for _ in range(2):
        student = Tiny(4, seed=3)
        match(student, Tiny(6), list(student.parameters()), pool(), steps=10, seed=5)
        results.append(student.out.detach())
    assert torch.equal(*results)


def test_progress_is_told_every_step():
    student, seen = Tiny(4, seed=3), []
    match(student, Tiny(6), [student.out], pool(), steps=4, progress=lambda step, error: seen.append(step))
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("inputs", [{"x": torch.zeros(15, 4)}, {"x": torch.zeros(20, 4), "t": torch.zeros(21)}])
def test_too_few_or_ragged_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match="same number of rows"):
        match(Tiny(4), Tiny(6), [], inputs)
