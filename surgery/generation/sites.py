"""Where keys and values are kept: for every attention whose keys come from the stream."""

from dataclasses import dataclass

from torch.fx import Node

from surgery.anatomy.graphs import aten, is_op
from surgery.generation.faults import unfit
from surgery.generation.parts import Parts

MOVES = (
    aten.unsqueeze,
    aten.expand,
    aten.reshape,
    aten.view,
    aten.clone,
    aten.contiguous,
    aten.slice,
    aten.transpose,
    aten.permute,
    aten.repeat_interleave,
    aten.flatten,
)
"""What may stand between the keys as they are kept and as attention reads them."""
WHOLE = 9223372036854775807


@dataclass(frozen=True, eq=False)
class Kept:
    """`node` is kept along `axis`; `path` leads from there to the operand that attention reads."""

    node: Node
    axis: int
    path: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Cached:
    """One self-attention: a call of scaled_dot_product_attention, its keys and its values."""

    call: Node
    key: Kept
    value: Kept


def cached_sites(parts: Parts) -> tuple[Cached, ...]:
    """Every self-attention of the stream. Raises RefusalError (S721) where there is none, or one cannot be cached."""
    found = []
    for node in parts.graph_module.graph.nodes:
        if node not in parts.stream or not is_op(node, aten.scaled_dot_product_attention):
            continue
        query, key, value = node.args[:3]
        if key not in parts.stream and value not in parts.stream:
            continue
        if query not in parts.stream:
            raise unfit("its keys come from the tokens, its queries do not", node)
        _refuse_mask(parts, node)
        found.append(Cached(node, _kept(parts, key), _kept(parts, value)))
    if not found:
        raise unfit("no attention over the tokens was found")
    return tuple(found)


def argument(node: Node, place: int, name: str) -> object:
    """An argument of a call, by position or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _refuse_mask(parts: Parts, node: Node) -> None:
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, Node) and mask in parts.stream:
        raise unfit("its mask is computed from the tokens", node)
    if mask is None and not argument(node, 5, "is_causal"):
        raise unfit("it looks at later tokens too", node)


def _kept(parts: Parts, operand: Node) -> Kept:
    """The smallest of the tensors an operand is a copy or a view of, along its chain of moves."""
    chain = [operand]
    while is_op(chain[-1], *MOVES) and chain[-1].args[0] in parts.stream and len(parts.rows(chain[-1].args[0])) == 1:
        if _narrows(chain[-1]):
            break
        chain.append(chain[-1].args[0])
    rows = [parts.rows(node) for node in chain]
    if len(rows[0]) != 1:
        raise unfit("its keys or values have no one axis of tokens", operand)
    rank = 4  # [B, heads, S, D], as attention reads them, rather than folded or unfolded

    def cost(place: int) -> tuple[int, int]:
        return _per_token(parts, chain[place]), abs(len(parts.shape(chain[place])) - rank)

    place = min(range(len(chain)), key=cost)
    return Kept(chain[place], rows[place][0], tuple(reversed(chain[:place])))


def _narrows(node: Node) -> bool:
    """Whether a slice leaves something out."""
    if not is_op(node, aten.slice):
        return False
    start, end, step = (argument(node, place, name) for place, name in ((2, "start"), (3, "end"), (4, "step")))
    return start not in (0, None) or end not in (WHOLE, None) or step not in (1, None)


def _per_token(parts: Parts, node: Node) -> int:
    """Elements for each token of each sample."""
    size = 1
    for length in parts.shape(node):
        size *= length if isinstance(length, int) else 1
    return size
