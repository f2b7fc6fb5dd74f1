"""How labels pass through an operation: by its kind, never by the model it is in."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.dimension import describe
from surgery.anatomy.graphs import aten, is_op, is_pointwise, shape, stored, value
from surgery.anatomy.units.einsum import einsum
from surgery.anatomy.units.products import added, addmm, attention, convolution, linear, matmul
from surgery.anatomy.units.union import FREE, either, once
from surgery.anatomy.units.walk import along, settle, unknown, varies, Walk

Rule = Callable[[Walk, Node], object]


def rule_of(node: Node) -> Rule:
    """The rule of a call; `unknown` where there is none."""
    if node.op == "output":
        return unknown
    if getattr(node.target, "__name__", "") == "getitem":
        return pick
    packet = getattr(node.target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet]
    return pointwise if is_pointwise(node) else unknown


def pick(walk: Walk, node: Node) -> Tensor | None:
    """One of several outputs."""
    held = walk.labels[node.args[0]]
    return walk.union.find(held[node.args[1]])


def pointwise(walk: Walk, node: Node) -> Tensor | None:
    """Operands meet element by element; what has no labels but the full size of a cut axis is cut as well."""
    size = walk.sizes.shape(node)
    operands = [each for each in node.all_input_nodes if shape(each) is not None]
    total = torch.tensor(FREE).expand(size)
    for operand in operands:
        held = walk.of(operand)
        if held is not None:
            walk.union.unify(total, held)
            total = either(total, held)
    total = walk.union.find(total)
    for operand in operands:
        settle(walk, node, operand, total)
    return total


def same(walk: Walk, node: Node) -> Tensor | None:
    """The first operand's labels, as they are."""
    return walk.of(node.args[0])


def moved(walk: Walk, node: Node) -> object:
    """A shape operation is run on the labels themselves."""
    held = walk.of(node.args[0])
    if held is None:
        return None
    args = [walk.sizes.plain(each) for each in node.args[1:]]
    kwargs = {name: walk.sizes.plain(each) for name, each in node.kwargs.items() if name != "memory_format"}
    target = aten.reshape.default if node.target is aten.view.default else node.target  # labels lie anyhow in memory
    try:
        found = target(held, *args, **kwargs)
    except RuntimeError:
        return walk.refuse(node, f"the sizes of {describe(node)} depend on values")
    return list(found) if isinstance(found, tuple | list) else found


def expanded(walk: Walk, node: Node) -> Tensor | None:
    held = walk.of(node.args[0])
    return None if held is None else held.expand(walk.sizes.shape(node))


def joined(walk: Walk, node: Node) -> Tensor:
    """`cat` and `stack`: parts without labels stay whole, but along axes that are cut in the others. An empty part of one
    axis joins whatever the others are."""
    parts = [walk.of(part) for part in node.args[0]]
    empty = [is_op(node, aten.cat) and walk.sizes.shape(part) == (0,) for part in node.args[0]]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    one = next(part for part in parts if part is not None)
    if not is_op(node, aten.cat) or not varies(one, axis):
        for part, held, none in zip(node.args[0], parts, empty, strict=True):
            if held is None and not none:
                like = one.narrow(axis, 0, 1) if is_op(node, aten.cat) else one
                settle(walk, node, part, like.expand(walk.sizes.shape(part)))
    parts = [
        torch.full(walk.sizes.shape(node.args[0][index]), FREE) if part is None else part
        for index, part in enumerate(parts)
    ]
    return node.target(parts, *node.args[1:], **node.kwargs)


def padded(walk: Walk, node: Node) -> Tensor | None:
    held = walk.of(node.args[0])
    return None if held is None else aten.constant_pad_nd(held, walk.sizes.plain(node.args[1]), FREE)


def paired(walk: Walk, node: Node) -> Tensor | None:
    """`view_as_complex`: the two entries of the last axis become one."""
    held = walk.of(node.args[0])
    if held is None:
        return None
    one, other = held.unbind(-1)
    walk.union.unify(one, other)
    return walk.union.find(either(one, other))


def parted(walk: Walk, node: Node) -> Tensor | None:
    """`view_as_real`: each entry becomes two."""
    held = walk.of(node.args[0])
    return None if held is None else held.unsqueeze(-1).expand(walk.sizes.shape(node))


def sloped(walk: Walk, node: Node) -> Tensor | None:
    """`prelu`: one slope for all, or one for each index of the second axis."""
    held, slopes = walk.of(node.args[0]), node.args[1]
    if held is None:
        return unknown(walk, node)
    if walk.sizes.shape(slopes) not in ((), (1,)) and varies(held, 1):
        vector = along(held, 1)
        if vector is None:
            return walk.refuse(node, f"{describe(node)} spreads a unit over two axes")
        walk.couple(node, slopes, 0, vector)
    return held


def reduced(walk: Walk, node: Node) -> Tensor | None:
    """A sum or mean mixes the axes it is taken over."""
    held = walk.of(node.args[0])
    if held is None:
        return None
    axes = _axes(node, held.dim())
    held = walk.mix(node, held, axes)
    left = [1 if axis in axes else size for axis, size in enumerate(held.shape)]
    return once(held).amax(axes, keepdim=True).expand(left).reshape(walk.sizes.shape(node))


def extreme(walk: Walk, node: Node) -> object:
    """max and min: along an axis they give values and places, of two tensors the larger or smaller of each entry."""
    if len(node.args) > 1 and isinstance(node.args[1], Node):
        return pointwise(walk, node)
    held = reduced(walk, node) if isinstance(value(node), Tensor) else None
    if held is not None or walk.of(node.args[0]) is None:
        return held
    labels = walk.of(node.args[0])
    axis = node.args[1] % labels.dim() if len(node.args) > 1 else None
    if axis is None:
        return unknown(walk, node)
    labels = walk.mix(node, labels, [axis]).narrow(axis, 0, 1)
    keeps = len(node.args) > 2 and node.args[2]
    labels = labels if keeps else labels.squeeze(axis)
    return [labels, labels]


def along_axis(walk: Walk, node: Node) -> Tensor | None:
    """softmax and its like: one axis is mixed, the shape stays."""
    held = walk.of(node.args[0])
    return None if held is None else walk.mix(node, held, _axes(node, held.dim()))


def normed(walk: Walk, node: Node) -> Tensor | None:
    """layer_norm and rms_norm mix the last axes."""
    held = walk.of(node.args[0])
    if held is None:
        return None
    count = len(node.args[1])
    return walk.mix(node, held, range(held.dim() - count, held.dim()))


def chosen(walk: Walk, node: Node) -> Tensor | None:
    """index_select: fine along an axis on which labels do not differ."""
    held, axis = walk.of(node.args[0]), node.args[1]
    if held is None or not isinstance(axis, int):
        return unknown(walk, node)
    if varies(held, axis):
        return unknown(walk, node)
    return held.narrow(axis, 0, 1).expand(walk.sizes.shape(node))


def picked(walk: Walk, node: Node) -> Tensor | None:
    """x[:, :, idx]: run on the labels where idx is stored, else fine along axes on which labels do not differ."""
    held, given = walk.of(node.args[0]), node.args[1]
    if held is None:
        return unknown(walk, node)
    axes = [axis for axis, index in enumerate(given) if index is not None]
    index = stored(given[axes[0]])
    if len(axes) == 1 and index is not None and index.dim() == 1 and not index.is_floating_point():
        return held.index_select(axes[0], index.remainder(held.shape[axes[0]]))
    if any(varies(held, axis) for axis in axes):
        return unknown(walk, node)
    size = walk.sizes.shape(node)
    new = len(size) - (held.dim() - len(axes))
    first = axes[0] if axes[-1] - axes[0] + 1 == len(axes) else 0
    for axis in reversed(axes):
        held = held.select(axis, 0)
    for _ in range(new):
        held = held.unsqueeze(first)
    return held.expand(size)


def halved(walk: Walk, node: Node) -> Tensor | None:
    """glu: one half of an axis multiplies the other."""
    held = walk.of(node.args[0])
    if held is None:
        return None
    axis = node.args[1] if len(node.args) > 1 else -1
    one, two = held.chunk(2, axis)
    walk.union.unify(one, two)
    return walk.union.find(either(one, two))


def gathered(walk: Walk, node: Node) -> Tensor | None:
    """gather: fine along an axis on which labels do not differ; the places to gather from are cut along the others."""
    held, axis = walk.of(node.args[0]), node.args[1]
    if held is None or varies(held, axis):
        return unknown(walk, node)
    total = held.narrow(axis, 0, 1).expand(walk.sizes.shape(node))
    settle(walk, node, node.args[2], total)
    return total


def _axes(node: Node, rank: int) -> list[int]:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = [given] if isinstance(given, int) else list(given) if given else list(range(rank))
    return [axis % rank for axis in axes]


SAME = "contiguous detach alias to _to_copy type_as dropout lift_fresh_copy clone tril triu"
MOVED = (
    "view reshape _unsafe_view permute transpose t unsqueeze squeeze slice select split split_with_sizes chunk unbind "
    "flatten unflatten repeat repeat_interleave narrow movedim roll flip tile swapaxes numpy_T mT adjoint expand "
    "broadcast_to"
)
REDUCED = "mean sum amax amin var std norm linalg_vector_norm logsumexp prod all any"
RULES: dict[object, Rule] = {
    aten.linear: linear,
    aten.addmm: addmm,
    aten.matmul: matmul,
    aten.bmm: matmul,
    aten.mm: matmul,
    aten.baddbmm: added,
    aten.einsum: einsum,
    aten.glu: halved,
    aten.prelu: sloped,
    aten.view_as_complex: paired,
    aten.view_as_real: parted,
    aten.index: picked,
    aten.scaled_dot_product_attention: attention,
    aten.expand_as: expanded,
    aten.cat: joined,
    aten.stack: joined,
    aten.constant_pad_nd: padded,
    aten.pad: padded,
    aten.softmax: along_axis,
    aten._softmax: along_axis,
    aten.log_softmax: along_axis,
    aten.cumsum: along_axis,
    aten.max: extreme,
    aten.min: extreme,
    aten.layer_norm: normed,
    aten.rms_norm: normed,
    aten.index_select: chosen,
    aten.gather: gathered,
    aten.conv1d: convolution,
    aten.conv2d: convolution,
}
RULES |= {getattr(aten, name): same for name in SAME.split() if hasattr(aten, name)}
RULES |= {getattr(aten, name): moved for name in MOVED.split() if hasattr(aten, name)}
RULES |= {getattr(aten, name): reduced for name in REDUCED.split() if hasattr(aten, name)}
