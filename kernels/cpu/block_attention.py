"""Block-sparse attention on a CPU: a native kernel for fp32 and bf16, PyTorch for every other dtype.

    s = scale · q kᵀ over the kept pairs      lse = log Σ exp s      out = exp(s - lse) v

q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, E], any strides; `layout` is the ten tensors of a `Blocks`, `block` its
(BM, BN). Sums are fp32; gradients too until they are written. The same bits on two runs and for any number of threads.
Reference: `surgery.kernels.reference.block_attention`. Source: FlashAttention-2 (Dao, 2023); what the native tiles look
like stands in `native/block_*.hpp`.
"""

import ctypes
import functools
import math

import torch
from surgery.kernels.cpu.block_attention_torch import torch_backward, torch_forward
from surgery.kernels.native import available, library
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["native_backward", "native_forward", "refuse_native", "torch_backward", "torch_forward"]

SUFFIX = {torch.float32: "float", torch.bfloat16: "bf16"}
LANES = 16
"""Head dims are filled up to whole vectors."""
LARGEST_BLOCK = 128


def refuse_native(
    q: Tensor, k: Tensor, v: Tensor, layout: list[Tensor], block: tuple[int, int], scale: float, *rest: object
) -> str | None:
    """Why the native kernel cannot take this, or None."""
    if q.device.type != "cpu":
        return f"runs on the CPU, not on {q.device.type}"
    if q.dtype not in SUFFIX:
        return f"takes fp32 and bf16, not {q.dtype}"
    if max(block) > LARGEST_BLOCK or min(block) % LANES:
        return f"takes blocks of {LANES} to {LARGEST_BLOCK}, in steps of {LANES}, not {block[0]} × {block[1]}"
    if not 0 < scale < math.inf:
        return f"takes a positive scale, not {scale}"
    return available("block_attention")


def native_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: list[Tensor], block: tuple[int, int], scale: float, widen: bool = False
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Sq, E], lse fp32 [B, Hq, Sq]). widen: bf16 by way of fp32 even where pairs can be multiplied."""
    dims = k.shape[-1], v.shape[-1]
    q, k, v = map(whole_vectors, (q, k, v))
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    call("forward", layout, block, scale, widen, q=q, k=k, v=v, out=out, lse=lse)
    return narrow(out, dims[1]), lse


def native_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: list[Tensor], block: tuple[int, int], scale: float, widen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv), shaped as q, k and v, from what the forward gave."""
    dims = q.shape[-1], k.shape[-1], v.shape[-1]
    grad_out, q, k, v, out = map(whole_vectors, (grad_out, q, k, v, out))
    lse = lse.contiguous()
    level = torch.empty(lse.shape, dtype=torch.float32)
    delta = torch.zeros_like(level) if grad_lse is None else grad_lse.clone(memory_format=torch.contiguous_format)
    grads = [torch.empty(each.shape, dtype=each.dtype) for each in (q, k, v)]
    given = {"q": q, "k": k, "v": v, "out": out, "grad_out": grad_out, "lse": lse, "level": level, "delta": delta}
    given |= dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))
    call("backward", layout, block, scale, widen, **given)
    return tuple(narrow(grad, dim) for grad, dim in zip(grads, dims, strict=True))


def whole_vectors(x: Tensor) -> Tensor:
    """Elements of a row side by side, their number filled with zeros to a multiple of LANES."""
    if x.shape[-1] % LANES:
        return pad(x, (0, -x.shape[-1] % LANES))
    return x if x.stride(-1) == 1 else x.contiguous()


def narrow(x: Tensor, dim: int) -> Tensor:
    return x if x.shape[-1] == dim else x[..., :dim].contiguous()


class View(ctypes.Structure):
    """Pointer and strides, in elements, of [batch, heads, rows, dim]."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row"))]

    @classmethod
    def of(cls, x: Tensor) -> "View":
        return cls(x.data_ptr(), *x.stride()[:3])


SIZES = (
    "batch",
    "heads",
    "kv_heads",
    "queries",
    "keys",
    "dim",
    "value_dim",
    "patterns",
    "block_q",
    "block_k",
    "threads",
)
INDEX = ("full_ptr", "full_idx", "part_ptr", "part_idx", "part_map")
INDEX_T = tuple(f"{name}_t" for name in INDEX)
VIEWS = ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")


class Problem(ctypes.Structure):
    """`Problem` of native/block_problem.hpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*INDEX, *INDEX_T, "part_bits")),
        *((name, View) for name in VIEWS),
        *((name, ctypes.c_void_p) for name in ("lse", "level", "delta")),
    ]


LAYOUT = (*INDEX[:4], "part_bits", *INDEX_T)
"""Names of the ten tensors, in the order of a `Blocks`."""


def call(name: str, layout: list[Tensor], block: tuple[int, int], scale: float, widen: bool, **tensors: Tensor) -> None:
    """Fill a Problem and run the native function of that name."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    if not (q.numel() or k.numel()):
        return
    held = [each.contiguous() for each in layout]
    tiles, key_tiles = -(-q.shape[2] // block[0]), -(-k.shape[2] // block[1])
    patterns = (held[0].numel() - 1) // tiles if tiles else (held[5].numel() - 1) // max(key_tiles, 1)
    sizes = (*q.shape[:2], k.shape[1], q.shape[2], *k.shape[2:], v.shape[3], patterns, *block, torch.get_num_threads())
    problem = Problem(*sizes, scale)
    for field, tensor in zip(LAYOUT, held, strict=True):
        setattr(problem, field, tensor.data_ptr())
    for field, tensor in tensors.items():
        setattr(problem, field, View.of(tensor) if field in VIEWS else tensor.data_ptr())
    suffix = SUFFIX[q.dtype] + ("_widened" if widen and q.dtype == torch.bfloat16 else "")
    function(f"{name}_{suffix}")(ctypes.byref(problem))


@functools.cache
def function(name: str) -> ctypes._CFuncPtr:
    """The native function with its argument types."""
    found = getattr(library("block_attention"), name)
    found.argtypes, found.restype = [ctypes.POINTER(Problem)], None
    return found
