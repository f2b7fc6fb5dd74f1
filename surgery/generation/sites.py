"""Where keys and values are kept: for every attention whose keys come from the stream."""

from collections.abc import Mapping
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
PATTERNS = {"surgery::pattern_attention": (4, 8), "surgery::gated_attention": (5, 7)}
"""Operators that take queries, keys and values first, and know that queries are the last of the keys: which of their
arguments is the mask, and which says that they are causal."""


@dataclass(frozen=True, eq=False)
class Kept:
    """`node` is kept along `axis`; `path` leads from there to the operand that attention reads."""

    node: Node
    axis: int
    path: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Cached:
    """A call that reads keys or values of all tokens: which of its arguments are kept, by place."""

    call: Node
    kept: Mapping[int, Kept]


def cached_sites(parts: Parts) -> tuple[Cached, ...]:
    """Every self-attention of the stream: scaled_dot_product_attention, or the two products around a softmax.

    Raises RefusalError (S721) where there is none, or one cannot be cached.
    """
    found = []
    for node in parts.graph_module.graph.nodes:
        if node not in parts.stream:
            continue
        places = _read_whole(parts, node)
        if len(parts.rows(node)) > 1 and not places and not any(len(parts.rows(n)) > 1 for n in node.all_input_nodes):
            raise unfit(f"`{node.name}` joins tokens with tokens in a way that is not known", node)
        if places:
            found.append(Cached(node, {place: _kept(parts, node.args[place]) for place in places}))
    if not found:
        raise unfit("no attention over the tokens was found")
    return tuple(found)


def _read_whole(parts: Parts, node: Node) -> tuple[int, ...]:
    """The arguments of a call that are keys or values of the stream."""
    if is_call(node):
        query, key, value = node.args[:3]
        if key not in parts.stream and value not in parts.stream:
            return ()
        if query not in parts.stream:
            raise unfit("its keys come from the tokens, its queries do not", node)
        _refuse_mask(parts, node)
        return (1, 2)
    first = 1 if is_op(node, aten.baddbmm) else 0
    if not is_op(node, aten.matmul, aten.bmm, aten.baddbmm):
        return ()
    left, right = node.args[first : first + 2]
    if left not in parts.stream or right not in parts.stream:
        return ()
    return (first + 1,) if _ahead(parts, node, left, right) in (SCORES, MIXED) else ()


SCORES, MIXED = ((-2,), (-1,), (-2, -1)), ((-2, -1), (-2,), (-2,))
"""Which axes count tokens, of both factors and the product: queries by keys, and weights by values."""


def _ahead(parts: Parts, *nodes: Node) -> tuple[tuple[int, ...], ...]:
    """The axes of tokens, counted from the last."""
    return tuple(tuple(axis - len(parts.shape(node)) for axis in parts.rows(node)) for node in nodes[1:] + nodes[:1])


def mixes(parts: Parts, node: Node) -> bool:
    """Whether a call gives each token what attention took from all of them."""
    if is_op(node, aten.scaled_dot_product_attention) or any(map(is_pattern, node.all_input_nodes)):
        return True
    return len(parts.rows(node)) == 1 and not is_pattern(node) and bool(_read_whole(parts, node))


def is_pattern(node: Node) -> bool:
    """Whether attention runs under a pattern or gates, in one operator; it returns more than its outputs."""
    return node.op == "call_function" and _name(node) in PATTERNS


def _name(node: Node) -> str:
    return getattr(getattr(node.target, "_schema", None), "name", "")


def is_call(node: Node) -> bool:
    """Whether attention is one call."""
    return is_op(node, aten.scaled_dot_product_attention) or is_pattern(node)


def argument(node: Node, place: int, name: str) -> object:
    """An argument of a call, by position or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _refuse_mask(parts: Parts, node: Node) -> None:
    if is_pattern(node):
        mask, causal = (node.args[place] for place in PATTERNS[_name(node)])
    else:
        mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal")
    if isinstance(mask, Node) and mask in parts.stream:
        raise unfit("its mask is computed from the tokens", node)
    if mask is None and not causal:
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
