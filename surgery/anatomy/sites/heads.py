"""How many heads an attention has, how many of its keys and values are really different, and how wide a head is.

Heads stand on an axis of their own, are folded into the batch ([batch · heads, length, head dim]), or are letters of an
einsum; keys and values of fewer heads are broadcast or were repeated on the way.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from surgery.anatomy.graphs import aten, folded, is_op, shape, tensor_inputs
from surgery.anatomy.units.sizes import Sizes

MOVES = tuple(
    getattr(aten, name)
    for name in (
        "view reshape _unsafe_view permute transpose unsqueeze squeeze slice select repeat repeat_interleave flatten "
        "unflatten movedim swapaxes narrow mT numpy_T expand broadcast_to expand_as"
    ).split()
)
KEEPS = (aten.clone, aten.contiguous, aten.to, aten._to_copy, aten.alias, aten.detach)


@dataclass(frozen=True)
class Heads:
    """`heads` of queries, `kv_heads` of keys and values, `head_dim` values each."""

    heads: int
    kv_heads: int
    head_dim: int


def operands_of(product: Node) -> tuple[Node, ...]:
    """The two tensors a matrix product multiplies."""
    if is_op(product, aten.einsum):
        return tuple(product.args[1])
    return tuple(product.args[1:3] if is_op(product, aten.baddbmm) else product.args[:2])


def count_heads(scores: Node, operands: tuple[Node, ...], joined: int | None) -> Heads:
    """Of queries, keys and values; `joined` is how many values per token the layer reads that joins the heads."""
    if is_op(scores, aten.einsum):
        return _of_letters(scores, joined)
    query, key, value = operands
    head_dim = _width(query)
    heads = _heads(query, joined, head_dim)
    shared = [_heads(each, joined, head_dim) * _distinct(each, range(_rank(each) - 2)) for each in (key, value)]
    return Heads(heads, max(1, round(min(heads, *shared))), head_dim)


def _heads(operand: Node, joined: int | None, head_dim: int) -> int:
    """Heads of an operand [batch, .., length, head_dim]."""
    sizes = shape(operand) or ()
    counted = [size for size in sizes[1:-2] if isinstance(size, int)]
    if counted:
        return _counted(counted, joined, head_dim)
    if len(sizes) != 3:
        return 1
    return folded(sizes[0]) or (joined // head_dim if joined and head_dim and joined % head_dim == 0 else 1)


def _counted(sizes: list[int], joined: int | None, head_dim: int) -> int:
    """Of several fixed axes before the length (groups × heads, windows × heads, heads × windows) those that the joining
    layer counts."""
    last = [prod(sizes[start:]) for start in reversed(range(len(sizes)))]
    first = [prod(sizes[:end]) for end in range(1, len(sizes))]
    return next((heads for heads in (*last, *first) if joined and heads * head_dim == joined), sizes[-1])


def _of_letters(scores: Node, joined: int | None) -> Heads:
    """`b h i d, b h j d -> b h i j`: what both operands and the result share are heads, what is summed their width."""
    equation = scores.args[0].replace(" ", "")
    terms, result = equation.split("->")
    query, key = terms.split(",")
    sizes = dict(zip(query, shape(scores.args[1][0]), strict=False))
    head_dim = prod(sizes[letter] for letter in query if letter in key and letter not in result)
    shared = [letter for letter in query if letter in key and letter in result and isinstance(sizes[letter], int)]
    kv_heads = prod(sizes[letter] for letter in shared)
    heads = joined // head_dim if joined and joined % head_dim == 0 else kv_heads
    axes = [key.index(letter) for letter in shared]
    return Heads(max(heads, kv_heads), max(1, round(kv_heads * _distinct(scores.args[1][1], axes))), head_dim)


def _distinct(operand: Node, axes: range | list[int]) -> float:
    """The share of slices along these axes that differ: 1, or less where they were repeated for groups of queries.

    The shape operations behind the operand are run on numbered elements.
    """
    chain, node = [], operand
    while is_op(node, *MOVES, *KEEPS):
        chain.append(node)
        node = tensor_inputs(node)[0]
    sizes = Sizes()
    held = torch.arange(prod(sizes.shape(node) or (0,))).reshape(sizes.shape(node) or (0,))
    try:
        for move in reversed(chain):
            held = _moved(move, held, sizes)
    except RuntimeError:  # a free length that only some numbers divide
        return 1
    axes = list(axes)
    firsts = held.permute(*axes, *(axis for axis in range(held.dim()) if axis not in axes))
    firsts = firsts.reshape(prod(held.shape[axis] for axis in axes), -1)[:, 0]
    return len(firsts.unique()) / max(1, len(firsts))


def _moved(move: Node, held: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    if is_op(move, *KEEPS):
        return held
    if is_op(move, aten.expand, aten.broadcast_to, aten.expand_as):
        return held.expand(sizes.shape(move))
    if is_op(move, aten.view):
        return held.reshape(sizes.shape(move))
    kwargs = {name: sizes.plain(each) for name, each in move.kwargs.items() if name != "memory_format"}
    return move.target(held, *map(sizes.plain, move.args[1:]), **kwargs)


def _rank(operand: Node) -> int:
    return len(shape(operand) or (0, 0))


def _width(operand: Node) -> int:
    sizes = shape(operand) or (0,)
    return sizes[-1] if isinstance(sizes[-1], int) else 0
