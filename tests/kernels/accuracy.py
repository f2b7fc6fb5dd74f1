"""How exact a kernel has to be: its errors against fp64 beside those of dense eager PyTorch in the same dtype.

One draw of a tiny problem says little: the largest of 300 errors varies by half from draw to draw and between processors,
and a draw on which eager happens to be exact would fail anything. So errors are taken over several draws:

    mean     over all elements of the draws that both computed
    largest  over all draws, of which eager has the more where ours are slow (the interpreter)

Each is at most `times` eager's. Where eager has none to compare with, one rounding of the result's dtype stands in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 64
"""Rows with sums of their own that the errors of eager are taken over, at least; and at least DRAWS draws."""
DRAWS = 6


@dataclass(frozen=True)
class Draw:
    """One draw of a problem. ours computes when asked; eager and exact (fp64) are results in the same order.

    terms  what a rounding is a rounding of, per element: None is |exact|. Larger where a result is a difference, see
           `softmax_terms`; one None for one result
    """

    ours: Callable[[], Sequence[Tensor]]
    eager: Sequence[Tensor]
    exact: Sequence[Tensor]
    terms: Sequence[Tensor | None] | None = None


def assert_as_exact_as_eager(
    draw: Callable[[int], Draw], times: dict[str, float], rows: int = ROWS, own: int | None = None
) -> None:
    """Hold every result, named in `times` by how many times eager's error it may have.

    draw  of a seed
    rows  that one draw has; fewer make more draws
    own   draws on which ours is computed too; None: all
    """
    count = max(DRAWS, -(-ROWS // max(rows, 1)))
    results = [Errors(name, factor) for name, factor in times.items()]
    for seed in range(count):
        drawn = draw(seed)
        made = drawn.ours() if own is None or seed < own else [None] * len(results)
        terms = drawn.terms or [None] * len(results)
        for result, *given in zip(results, made, drawn.eager, drawn.exact, terms, strict=True):
            result.add(*given)
    for result in results:
        result.check()


class Errors:
    """The errors of one result over draws."""

    def __init__(self, name: str, times: float) -> None:
        self.name, self.times = name, times
        self.mean: list[tuple[float, float, float]] = []
        self.largest: list[tuple[float, float, float]] = []

    def add(self, ours: Tensor | None, eager: Tensor, exact: Tensor, terms: Tensor | None = None) -> None:
        """Take in one draw. -inf, the log-sum-exp of nothing, has to stand in the same places and is no error."""
        assert exact.dtype == torch.float64 or not exact.is_floating_point(), self.name
        if ours is not None:
            assert ours.shape == exact.shape, f"{self.name}: {list(ours.shape)}, expected {list(exact.shape)}"
            assert torch.equal(ours.isinf(), exact.isinf()), f"{self.name}: infinite in other places"
        if not exact.numel():
            return
        unit = torch.finfo(eager.dtype).eps / 2
        size = finite(exact).abs() if terms is None else torch.maximum(finite(exact).abs(), terms)
        theirs, mine = distance(eager, exact), None if ours is None else distance(ours, exact)
        highest = 0.0 if mine is None else float(mine.max())
        self.largest.append((highest, float(theirs.max()), unit * float(size.max())))
        if mine is not None:
            self.mean.append((float(mine.mean()), float(theirs.mean()), unit / 2 * float(size.mean())))

    def check(self) -> None:
        if self.mean:
            means = [sum(column) / len(self.mean) for column in zip(*self.mean, strict=True)]
            self._within("mean", *means)
            self._within("largest", *(max(column) for column in zip(*self.largest, strict=True)))

    def _within(self, kind: str, ours: float, eager: float, rounding: float) -> None:
        # Not `>`: an error that is no number has to fail.
        assert ours <= self.times * max(eager, rounding), (
            f"{self.name}: {kind} error {ours:.3g}, over {self.times} × eager's {eager:.3g} "
            f"({ours / max(eager, 1e-300):.2f} ×; a rounding is {rounding:.3g})"
        )


def softmax_terms(
    weights: Tensor, inputs: Sequence[Tensor], grad: Tensor, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    """What roundings are roundings of in dq [B, Hq, Sq, D], dk and dv [B, Hkv, Sk, D], in units of the inputs' dtype.

    Kernels that keep no weights make them anew, p_ij = exp(s_ij - lse_i), and take the gradient of a score as
    p_ij (dout_i · v_j - dout_i · out_i). Of a query with one key eager, which keeps the weights, has p = 1 and a
    difference of equals, both exact; here is left what one rounding each makes of
      out, as it was stored: ‖dout_i ∘ out_i‖, as of independent ones
      lse, which is stored in fp32, and the fp32 sums q_i · k_j, which it is subtracted from, and dout_i · out_i: at the
      size of their terms

    weights [B, Hq, Sq, Sk], grad, out, lse in fp64; inputs q, k, v as the kernels get them.
    """
    q, k, v = (each.double() for each in inputs)
    group, single = q.shape[1] // k.shape[1], torch.finfo(torch.float32).eps / torch.finfo(inputs[0].dtype).eps
    k, v = (each.repeat_interleave(group, 1) for each in (k, v))
    terms, shift = grad * out, (grad * out).sum(-1, keepdim=True)
    size = single * (finite(lse).abs()[..., None] + abs(scale) * (q.abs() @ k.abs().transpose(-1, -2)))
    slopes = (grad @ v.transpose(-1, -2) - shift).abs()
    by_score = weights * scale * (terms.norm(dim=-1, keepdim=True) + single * terms.abs().sum(-1, True) + size * slopes)
    of_keys = by_score.transpose(-1, -2) @ q.abs(), (weights * size).transpose(-1, -2) @ grad.abs()
    return [by_score @ k.abs(), *(each.unflatten(1, (-1, group)).sum(2) for each in of_keys)]


def finite(x: Tensor) -> Tensor:
    return x.masked_fill(x.isinf(), 0)


def distance(x: Tensor, exact: Tensor) -> Tensor:
    """|x - exact| in fp64; infinities, which are compared elsewhere, count as 0."""
    return (finite(x).double() - finite(exact)).abs()
