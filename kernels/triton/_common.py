"""Steps that attention kernels share: tiles in memory, tiles of bits, the online softmax. Not a kernel by itself."""

import torch
from surgery.kernels.tuning import Config
from torch import Tensor

import triton
import triton.language as tl

SMALL_TILE = 32 * 32
LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)
NATURAL = tl.constexpr(LOG2E)


def padded_dim(dim: int) -> int:
    """The power of two that a head dim is padded to: `tl.dot` takes no other, and no table has one below 32."""
    return max(32, triton.next_power_of_2(dim))


def checks_columns(row: Config, dim: int) -> bool:
    """Whether loads and stores of a tile check the head dim: where it is padded, and wherever a check weighs nothing.

    That is beside products without tensor cores (fp32) and in small tiles; one variant then serves both.
    """
    small = row.blocks["TILE_Q"] * row.blocks["TILE_K"] <= SMALL_TILE
    return padded_dim(dim) != dim or row.dtype == "fp32" or small


def whole_rows(tensor: Tensor) -> Tensor:
    """The tensor [.., D] with rows that load as vectors: contiguous, and zeros up to the next multiple of 16.

    Copied only where that is not so. A kernel takes any other stride.
    """
    if missing := -tensor.shape[-1] % 16:
        return torch.nn.functional.pad(tensor, (0, missing))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def trimmed(made: Tensor, dim: int) -> Tensor:
    """What a kernel made [.., D], contiguous, without the zeros that `whole_rows` added."""
    return made if made.shape[-1] == dim else made[..., :dim].contiguous()


@triton.jit
def tile_offsets(rows, columns, row_stride):
    """Where the elements of a tile lie, in int64: a row's offset may pass 2^31. Columns are contiguous."""
    return rows.to(tl.int64)[:, None] * row_stride + columns[None, :]


@triton.jit
def tile_mask(rows, columns, row_count, column_count, CHECK_ROWS: tl.constexpr, CHECK_COLUMNS: tl.constexpr):
    """Which elements of a tile exist; None, for an unmasked and faster access, if nothing has to be checked."""
    if CHECK_ROWS and CHECK_COLUMNS:
        return (rows[:, None] < row_count) & (columns[None, :] < column_count)
    elif CHECK_ROWS:
        return (rows[:, None] < row_count) & (columns[None, :] >= 0)
    elif CHECK_COLUMNS:
        return (rows[:, None] >= 0) & (columns[None, :] < column_count)
    else:
        return None


@triton.jit
def load_tile(
    base,
    rows,
    columns,
    row_stride,
    row_count,
    column_count,
    CHECK_ROWS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
):
    """`base[rows, columns]`; 0 beyond row_count and column_count, where those are checked."""
    pointers = base + tile_offsets(rows, columns, row_stride)
    if CHECK_ROWS or CHECK_COLUMNS:
        mask = tile_mask(rows, columns, row_count, column_count, CHECK_ROWS, CHECK_COLUMNS)
        return tl.load(pointers, mask=mask, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(base, tile, rows, columns, row_stride, row_count, column_count, CHECK_COLUMNS: tl.constexpr):
    """Write `base[rows, columns]` in the type of `base`, rows always checked."""
    mask = tile_mask(rows, columns, row_count, column_count, True, CHECK_COLUMNS)
    tl.store(base + tile_offsets(rows, columns, row_stride), tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def unpack_bits(words, columns, WORDS: tl.constexpr):
    """Bool [rows, columns] from bits: `words` points at each row's first word, column j is bit j % 32 of word j // 32.
    A tile narrower than a word may begin within one: its columns then do not count from 0.

    A word is loaded once per row and spread over its 32 columns in registers, so that no 2-D tile is loaded or moved.
    """
    chosen = tl.load(words)[:, None] + tl.zeros_like(columns)[None, :]
    for word in tl.static_range(1, WORDS):
        chosen = tl.where(columns[None, :] >= 32 * word, tl.load(words + word)[:, None], chosen)
    return ((chosen >> (columns[None, :] & 31)) & 1) != 0


@triton.jit
def softmax_step(scores, scale, peak, total):
    """One step of the online softmax in base 2: scores [rows, columns] unscaled, -inf where a key is not seen.

    scale > 0 holds log2(e). Returns weights, the factor that earlier sums shrink by, the new peak and total. A row that
    saw no key yet keeps peak -inf and total 0: no NaN arises, because -inf is never subtracted from -inf.
    """
    peak_now = tl.maximum(peak, tl.max(scores, 1) * scale)
    safe = tl.where(peak_now == float("-inf"), 0.0, peak_now)
    weights = tl.exp2(scores * scale - safe[:, None])
    shrink = tl.exp2(peak - safe)
    return weights, shrink, peak_now, total * shrink + tl.sum(weights, 1)


@triton.jit
def softmax_end(peak, total):
    """What to multiply the sum of values by, and the natural log-sum-exp: 0 and -inf for a row without any key."""
    empty = total == 0.0
    one = tl.where(empty, 1.0, total)
    return tl.where(empty, 0.0, 1.0 / one), tl.where(empty, float("-inf"), (peak + tl.log2(one)) * LN2)


@triton.jit
def softmax_again(scores, scale, lse, PRECISE: tl.constexpr):
    """The weights once more: exp(scale · scores - lse), lse natural, finite and of a shape that broadcasts.

    PRECISE takes log2(e) in after the difference, which is small: a multiplication more, and two roundings less at the
    size of the scores. fp32 needs it to stay within three times the error of eager.
    """
    if PRECISE:
        return tl.exp2((scores * scale - lse) * NATURAL)
    else:
        return tl.exp2(scores * (scale * NATURAL) - lse * NATURAL)
