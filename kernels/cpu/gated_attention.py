"""Gated attention on a CPU: a native kernel for fp32 and bf16, and PyTorch over a few rows at a time for the rest."""

import ctypes
from collections.abc import Iterator

import torch
from surgery.kernels.native import available, library
from surgery.kernels.reference import gated_attention as reference
from torch import Tensor

NAME = "gated_attention"
BUDGET = 1 << 22
"""Logits that the PyTorch path holds at a time, about: 16 MB in fp32."""


def refuse(q: Tensor) -> str | None:
    """Why the native kernel cannot take this, or None."""
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"takes fp32 and bf16, not {q.dtype}"
    return available(NAME)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    gates: str,
    temperature: float,
    count: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator, natively: two parallel loops, one to lay out keys and values, one over tiles of queries."""
    lines, tiles = q.shape[0] * q.shape[1], -(-q.shape[2] // library(NAME).gated_rows())
    room = q.shape[0] * k.shape[1] * 2 * _panel(k)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    expected, kept = torch.empty(lines, tiles, dtype=torch.float64), torch.empty(lines, tiles, dtype=torch.int64)
    made = (out, lse, expected, kept, torch.empty(room, dtype=torch.float32))
    _call("gated_forward", (q, k, v, bias), (), made, seed, key_mask, scale, causal, gates, temperature, count)
    if not count:
        return out, lse, lse.new_empty(0), kept.new_empty(0)
    return out, lse, expected.sum(-1).float().view(q.shape[:2]), kept.sum(-1).view(q.shape[:2])


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    grad_expected: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    key_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    gates: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four gradients in one walk over the tiles of each key head, which one thread owns."""
    delta = (grad_out.float() * out.float()).sum(-1) - grad_lse
    given = (grad_out.to(q.dtype).contiguous(), lse.contiguous(), delta, grad_expected.float().contiguous())
    dq, dk, dv = (torch.empty(each.shape, dtype=each.dtype) for each in (q, k, v))
    dbias = torch.zeros(q.shape[:2], dtype=torch.float64)
    made = (dq, dk, dv, dbias)
    _call("gated_backward", (q, k, v, bias), given, made, seed, key_mask, scale, causal, gates, temperature, True)
    return dq, dk, dv, dbias.view(-1, bias.numel()).sum(0).to(bias.dtype)


def _call(name, tensors, given, made, seed, key_mask, scale, causal, gates, temperature, count) -> None:
    """Call a native function: tensors as pointers, then sizes, strides and switches, two scalars, dtype, threads."""
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in tensors[:3])
    bias, hidden = tensors[3].float().contiguous(), _hidden(key_mask, k)
    sizes = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], bias.numel())
    strides = [stride for each in (q, k, v) for stride in each.stride()[:3]]
    noise = (False, 0) if seed is None else (True, int(seed))
    switches = (causal, gates != "hard", gates == "soft", count, key_mask is not None, *noise)
    numbers = [int(each) for each in (*sizes, *strides, *switches)]
    call = getattr(library(NAME), name)
    call(
        _pointers(q, k, v, bias, hidden, *given),
        _pointers(*made),
        (ctypes.c_int64 * len(numbers))(*numbers),
        (ctypes.c_float * 2)(scale, temperature),
        int(q.dtype == torch.bfloat16),
        torch.get_num_threads(),
    )


def _pointers(*tensors: Tensor | None) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(None if each is None else each.data_ptr() for each in tensors))


def _panel(k: Tensor) -> int:
    """Floats that one key head takes when it is laid out for the kernel."""
    size = library(NAME).gated_panel
    size.argtypes, size.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    return size(k.shape[2], k.shape[3])


def _hidden(key_mask: Tensor | None, k: Tensor) -> Tensor | None:
    """What to add to a batch's logits, [B, keys rounded up to whole tiles]: 0, or -inf where a key is not seen."""
    if key_mask is None:
        return None
    width = _panel(k) // max(-(-k.shape[3] // 16) * 16, 1)
    hidden = torch.full((k.shape[0], width), reference.NEVER)
    hidden[:, : k.shape[2]].masked_fill_(key_mask, 0)
    return hidden


def rows_at_a_time(q: Tensor, k: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of queries whose logits stay within BUDGET; always one, so that outputs exist."""
    step = max(1, BUDGET // max(q.shape[0] * q.shape[1] * k.shape[2], 1))
    for first in range(0, max(q.shape[2], 1), step):
        yield first, min(first + step, q.shape[2])


def widened(*tensors: Tensor) -> list[Tensor]:
    return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in tensors]


def forward_torch(q, k, v, bias, seed, key_mask, scale, causal, gates, temperature, count) -> tuple[Tensor, ...]:
    """The operator in PyTorch: the reference in at least fp32, on a few queries at a time.

    A logit rounded to fp16 would open gates that an exact one leaves closed.
    """
    dtype = q.dtype
    q, k, v = widened(q, k, v)
    settings = {"scale": scale, "causal": causal, "gates": gates, "temperature": temperature}
    parts = [
        reference.gated_attention(q, k, v, bias, **settings, seed=seed, key_mask=key_mask, rows=rows)
        for rows in rows_at_a_time(q, k)
    ]
    outs, lses, expected, kept = zip(*parts, strict=True)
    out, lse = torch.cat(outs, 2).to(dtype), torch.cat(lses, 2)
    if not count:
        return out, lse, lse.new_empty(0), kept[0].new_empty(0)
    return out, lse, torch.stack(expected).sum(0), torch.stack(kept).sum(0)


def backward_torch(
    grad_out, grad_lse, grad_expected, q, k, v, bias, seed, key_mask, out, lse, scale, causal, gates, temperature
) -> tuple[Tensor, ...]:
    """The gradients in PyTorch, a few queries at a time, in at least fp32."""
    like = (k, v, bias)
    dtype, (grad_out, q, k, v, out) = q.dtype, widened(grad_out, q, k, v, out)
    settings = {"scale": scale, "causal": causal, "gates": gates, "temperature": temperature}
    dq, sums = [], None
    for rows in rows_at_a_time(q, k):
        own = [each[:, :, slice(*rows)] for each in (grad_out, grad_lse, out, lse)]
        mine, *shared = reference.gated_attention_backward(
            *own[:2], grad_expected, q, k, v, bias, *own[2:], **settings, seed=seed, key_mask=key_mask, rows=rows
        )
        dq.append(mine)
        shared = [each.to(lse.dtype) for each in shared]
        sums = shared if sums is None else [total + each for total, each in zip(sums, shared, strict=True)]
    return torch.cat(dq, 2).to(dtype), *(total.to(each.dtype) for total, each in zip(sums, like, strict=True))
