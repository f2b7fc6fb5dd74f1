"""`surgery::block_decode`: new tokens attend to listed blocks of a key-value cache."""

from typing import Any, NoReturn

import torch
from surgery.kernels.cpu import block_decode as cpu
from surgery.kernels.operators.backends import Backend, never, run
from surgery.kernels.operators.define import operator
from surgery.kernels.reference.block_decode import block_decode as reference
from torch import Tensor

MOST_TOKENS = 16


def block_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_idx: Tensor,
    lengths: Tensor,
    *,
    block: int = 64,
    scale: float | None = None,
) -> Tensor:
    """out[b, h, t] = Σⱼ softmaxⱼ(scale · q[b, h, t] · k[b, h', j]) v[b, h', j], h' = h // (Hq / Hkv), over the keys seen.

    A key j is seen if its block, j // block, is listed for the KV head and j <= lengths[b] - Tq + t: the tokens are the
    last Tq of the sequence. All query heads of a KV head share its list. A token that sees no key gives 0.

    q          [B, Hq, Tq, D], Tq 1..16
    k, v       [B, Hkv, Sk, D], the cache; what lies past the lengths is never read into a result
    block_idx  int32 [B, Hkv, N]: numbers of blocks, sorted, each once, filled up with -1
    lengths    int32 [B]: tokens in the cache, the new ones among them
    scale      D ** -0.5 if None

    fp32, fp16, bf16 (fp64 on CPU); sums in fp32. The list is cut into chunks that run side by side and are merged in
    their order, so two runs give the same bits. Inference only: raises RuntimeError if an input requires a gradient.
    Raises ValueError for shapes and dtypes that do not fit.

    Reference: `surgery.kernels.reference.block_decode`. Source: Flash-Decoding (Dao et al., 2023); lists of blocks as in
    Quest (Tang et al., arXiv 2406.10774).
    """
    _check(q, k, v, block_idx, lengths, block)
    return OPERATOR(q, k, v, block_idx, lengths, block, q.shape[-1] ** -0.5 if scale is None else scale)


def _check(q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int) -> None:
    """Raise ValueError where shapes or dtypes do not fit."""
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"{shapes}: expected q [B, Hq, Tq, D], k and v [B, Hkv, Sk, D]")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot be shared evenly by {k.shape[1]} KV heads")
    if not 1 <= q.shape[2] <= MOST_TOKENS:
        raise ValueError(f"{q.shape[2]} new tokens: decoding takes 1 to {MOST_TOKENS}; use block_attention for more")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: expected one floating dtype")
    if block_idx.dtype != torch.int32 or block_idx.dim() != 3 or block_idx.shape[:2] != k.shape[:2]:
        raise ValueError(f"block_idx is {block_idx.dtype} {list(block_idx.shape)}, expected int32 [B, Hkv, N]")
    if lengths.dtype != torch.int32 or lengths.shape != q.shape[:1]:
        raise ValueError(f"lengths is {lengths.dtype} {list(lengths.shape)}, expected int32 [B]")
    if block < 1:
        raise ValueError(f"blocks of {block} tokens")


def check_lists(block_idx: Tensor, blocks: int) -> None:
    """Raise ValueError at the first number that is out of range, unsorted, a duplicate, or behind the filling -1.

    Reads the lists, so a decode loop calls it once, if it does not trust where they come from.
    """
    before, after = block_idx[..., :-1], block_idx[..., 1:]
    faults = {
        "is out of range": (block_idx < -1) | (block_idx >= blocks),
        "follows a -1": torch.nn.functional.pad((before == -1) & (after != -1), (1, 0)),
        "is a duplicate": torch.nn.functional.pad((before == after) & (after != -1), (1, 0)),
        "is unsorted": torch.nn.functional.pad((before > after) & (after != -1), (1, 0)),
    }
    for what, wrong in faults.items():
        if bool(wrong.any()):
            batch, head, place = wrong.nonzero()[0].tolist()
            number = int(block_idx[batch, head, place])
            raise ValueError(f"block_idx[{batch}, {head}, {place}] = {number} {what} ({blocks} blocks)")


def _run_triton(*arguments: Any) -> Tensor:
    from surgery.kernels.triton.block_decode import block_decode as launch

    return launch(*arguments)


def _refuse_triton(q: Tensor, *arguments: Any) -> str | None:
    if q.dtype == torch.float64:
        return "fp64 has no tiles"
    if q.shape[-1] % 16 or q.shape[-1] > 256:
        # Rows of a cache would load element by element, and a cache is too large to copy for longer ones.
        return f"head dim {q.shape[-1]} is no multiple of 16 up to 256"
    return None


TORCH = Backend("torch", cpu.gathered, never)
REFERENCE = Backend("reference", reference, never)
ON_CPU = (Backend("native", cpu.native, cpu.refuse_native), TORCH, REFERENCE)
ON_CUDA = (Backend("triton", _run_triton, _refuse_triton), TORCH, REFERENCE)


def _on_cpu(*arguments: Any) -> Tensor:
    return run("block_decode", ON_CPU, *arguments)


def _on_cuda(*arguments: Any) -> Tensor:
    return run("block_decode", ON_CUDA, *arguments)


def _fake(q: Tensor, *arguments: Any) -> Tensor:
    return q.new_empty(q.shape)


def _flops(q: Tensor, k: Tensor, v: Tensor, block_idx: Tensor, lengths: Tensor, block: int, scale: float) -> int:
    """Two products over every listed key, as if all of it were filled."""
    return 4 * q.numel() * block_idx.shape[2] * block


def _no_gradient(*arguments: Any, **named: Any) -> NoReturn:
    raise RuntimeError("block_decode has no gradient: call it under torch.no_grad(), or train with block_attention")


OPERATOR = operator(
    "block_decode(Tensor q, Tensor k, Tensor v, Tensor block_idx, Tensor lengths, int block, float scale) -> Tensor",
    cpu=_on_cpu,
    cuda=_on_cuda,
    fake=_fake,
    flops=_flops,
    setup=_no_gradient,
    backward=_no_gradient,
)
