"""`surgery::probe_select`: which blocks of channels a token needs, from a few random probes of it."""

from typing import Any

import torch
from surgery.kernels.cpu.probe_select import probed
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference.probe_select import probe_select as reference
from torch import Tensor

MOST_BLOCKS_ON_GPU = 2048
MOST_PROBES_ON_GPU = 64


def probe_select(
    x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """s = probes x, score[b] = Σₐ (dictionary[:, a, b] · s)²: the `keep` blocks of highest score, and all scores.

    x           [T, d]
    probes      [m, d], random rows, as `torch.randn(m, d)`; 16 to 64 of them
    dictionary  [m, atoms, blocks], or [m, blocks] for one atom: what a block looks like through the probes, normalised as
                ranking should see it; `matched_dictionary` makes one from weights
    keep        1 to blocks
    shared      one list for all rows, from the sum of their scores

    Returns blocks int32 [T, keep] (shared: [1, keep]), sorted, each once, as `gathered_ffn` takes a row of them; scores
    [T, blocks] (shared: [1, blocks]), fp32, of fp64 input fp64. Of equal scores the lower number wins. A NaN score, from a
    NaN in x, stays in the scores and loses to all others: the list is valid whatever comes in. Scores
    have gradients, the list has none.
    Raises ValueError for what does not fit.

    One step of block matching pursuit on a measured state: the correlations of all blocks' atoms with the measurements, of
    a block their squared norm. Reference: `surgery.kernels.reference.probe_select`. Source: Block-OMP (Eldar, Kuppinger &
    Bölcskei, 2010); probes as router: Kiruluta (arXiv 2604.14156).
    """
    dictionary = dictionary[:, None] if dictionary.dim() == 2 else dictionary
    _check(x, probes, dictionary, keep)
    return OPERATOR(x, probes, dictionary, keep, shared)


def matched_dictionary(probes: Tensor, rows: Tensor, block: int) -> Tensor:
    """[m, block, ⌈f / block⌉]: atom a of block b is probes · rows[b · block + a] / m, zero past the last row.

    rows [f, d] of weights (up, or gate). With probes of independent unit-variance entries s · atom is an unbiased estimate
    of x · row, so a block's score estimates the energy of its channels before the activation, up to noise of order
    |x|² |rows|² / m.
    """
    atoms = torch.nn.functional.pad(probes @ rows.t() / probes.shape[0], (0, -rows.shape[0] % block))
    return atoms.unflatten(1, (-1, block)).transpose(1, 2).contiguous()


def _check(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int) -> None:
    if x.dim() != 2 or probes.dim() != 2 or x.shape[1] != probes.shape[1]:
        raise ValueError(f"x {list(x.shape)}, probes {list(probes.shape)}: expected [T, d] and [m, d]")
    if dictionary.dim() != 3 or dictionary.shape[0] != probes.shape[0] or not dictionary.shape[1]:
        raise ValueError(f"dictionary is {list(dictionary.shape)}, expected [{probes.shape[0]}, atoms, blocks]")
    if not (x.is_floating_point() and probes.is_floating_point() and dictionary.is_floating_point()):
        raise ValueError(f"x {x.dtype}, probes {probes.dtype}, dictionary {dictionary.dtype}: expected floating dtypes")
    if not 1 <= keep <= dictionary.shape[2]:
        raise ValueError(
            f"keep={keep}: there are {dictionary.shape[2]} blocks, keep 1 of them at least and all at most"
        )


def _run_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from surgery.kernels.triton.probe_select import probe_select as launch

    return launch(*arguments)


def _refuse_triton(x: Tensor, probes: Tensor, dictionary: Tensor, *arguments: Any) -> str | None:
    if torch.float64 in (x.dtype, probes.dtype, dictionary.dtype):
        return "fp64 would be scored in fp32"
    if dictionary.shape[2] > MOST_BLOCKS_ON_GPU:
        return f"{dictionary.shape[2]} blocks are over {MOST_BLOCKS_ON_GPU}"
    return f"{probes.shape[0]} probes are over {MOST_PROBES_ON_GPU}" if probes.shape[0] > MOST_PROBES_ON_GPU else None


TORCH, REFERENCE = Backend("torch", probed, never), Backend("reference", reference, never)
ON_CPU = (TORCH, REFERENCE)
ON_CUDA = (Backend("triton", _run_triton, _refuse_triton), TORCH, REFERENCE)


def _on_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    return run("probe_select", ON_CPU, *arguments)


def _on_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return run("probe_select", ON_CUDA, *arguments)


def _fake(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, shared: bool) -> tuple[Tensor, Tensor]:
    rows = 1 if shared else x.shape[0]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    blocks = x.new_empty((rows, keep), dtype=torch.int32)
    return blocks, x.new_empty((rows, dictionary.shape[2]), dtype=wide)


def _flops(x: Tensor, probes: Tensor, dictionary: Tensor, keep: int, shared: bool) -> int:
    return 2 * x.shape[0] * (probes.numel() + dictionary.numel())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, grad_blocks: None, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    """Of the scores, in the dtype of the scores: s = probes x, matches = s · dictionary, scores = Σ matches²."""
    x, probes, dictionary = (each.to(grad_scores.dtype) for each in ctx.saved_tensors)
    sketch, atoms = x @ probes.t(), dictionary.flatten(1)
    matches = (sketch @ atoms).unflatten(1, dictionary.shape[1:])
    slopes = (2 * matches * grad_scores[:, None]).flatten(1)
    of_sketch = slopes @ atoms.t()
    made = (of_sketch @ probes, of_sketch.t() @ x, (sketch.t() @ slopes).view_as(dictionary))
    return *(grad.to(each.dtype) for grad, each in zip(made, ctx.saved_tensors, strict=True)), None, None


OPERATOR = operator(
    "probe_select(Tensor x, Tensor probes, Tensor dictionary, int keep, bool shared) -> (Tensor blocks, Tensor scores)",
    cpu=_on_cpu,
    cuda=_on_cuda,
    fake=_fake,
    flops=_flops,
    setup=_setup,
    backward=_gradients,
)
