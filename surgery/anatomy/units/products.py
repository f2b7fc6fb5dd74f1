"""Operations that sum an axis away: layers, matrix products, attention."""

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.dimension import describe
from surgery.anatomy.graphs import aten, is_op
from surgery.anatomy.units.union import FREE, either, once
from surgery.anatomy.units.walk import Walk, along, settle, unknown, varies


def linear(walk: Walk, node: Node) -> Tensor | None:
    """[.., K] · [M, K]: the weight loses columns, and the axis ends here; unless heads share the layer."""
    return _layer(walk, node, node.args[0], node.args[1], 1)


def addmm(walk: Walk, node: Node) -> Tensor | None:
    """b + x W, W [K, M]."""
    return _layer(walk, node, node.args[1], node.args[2], 0)


def _layer(walk: Walk, node: Node, source: Node, weight: Node, axis: int) -> Tensor | None:
    held = walk.of(source)
    if held is None:
        return _made(walk, node, weight)
    if weight.op != "get_attr":
        return walk.refuse(node, f"the weight of {describe(node)} is computed, not stored")
    last = held.dim() - 1
    if not any(varies(held, each) for each in range(last)):
        if varies(held, last) or held.shape[-1] == 1:
            vector = along(held, last)
            walk.cut_weight(node, weight, axis, vector)
            walk.consumers[node] = vector
        return None
    held = walk.mix(node, held, [last])
    return held[..., :1].expand(walk.sizes.shape(node))


def _made(walk: Walk, node: Node, weight: Node) -> Tensor | None:
    """Features made by labelled rows of a weight."""
    rows = walk.of(weight)
    if rows is None or not is_op(node, aten.linear):
        return unknown(walk, node)
    rows = along(rows, 0)
    if rows is None:
        return unknown(walk, node)
    bias = node.args[2] if len(node.args) > 2 else None
    given = walk.of(bias)
    if given is not None:
        walk.union.unify(rows, given)
    elif isinstance(bias, Node):
        walk.couple(node, bias, 0, rows)
    return walk.union.find(rows).expand(walk.sizes.shape(node))


def matmul(walk: Walk, node: Node) -> Tensor | None:
    """[.., M, K] · [.., K, N]: against a weight it is a layer; between activations batch axes are one."""
    left, right = node.args[:2]
    if right.op == "get_attr" and len(walk.sizes.shape(right)) == 2:
        return _layer(walk, node, left, right, 0)
    return _product(walk, node, left, right)


def added(walk: Walk, node: Node) -> Tensor | None:
    """baddbmm: beta · input + alpha · left right."""
    source, left, right = node.args[:3]
    total, given = _product(walk, node, left, right), walk.of(source)
    if total is None:
        return unknown(walk, node)
    if given is None:
        settle(walk, node, source, total)
        return total
    walk.union.unify(total, given)
    return walk.union.find(either(total, given))


def _product(walk: Walk, node: Node, left: Node, right: Node) -> Tensor | None:
    sizes = walk.sizes.shape(node)
    one, two = walk.of(left), walk.of(right)
    if one is None and two is None:
        return unknown(walk, node)
    one, two = _unshared(one, two)
    for held, operand in ((one, left), (two, right)):
        _want(walk, node, operand, held, two if held is one else one)
    total = torch.tensor(FREE).expand(sizes)
    for held, axis in ((one, -1), (two, -2)):
        if held is not None:
            part = walk.mix(node, held, [held.dim() + axis]).narrow(axis, 0, 1)
            walk.union.unify(total, part)
            total = either(total, part)
    return walk.union.find(total)


def attention(walk: Walk, node: Node) -> Tensor | None:
    """softmax(Q Kᵀ) V: a head of q, k, v and of the output is one; grouped queries share theirs."""
    query, key, value = node.args[:3]
    heads = walk.sizes.shape(query)[-3] if len(walk.sizes.shape(query)) > 3 else 1
    labels = [walk.of(query), *(_repeated(walk.of(each), heads) for each in (key, value))]
    for index in (1, 2):
        labels[index] = without_shared(labels[index])
    known = [held for held in labels if held is not None]
    if not known or heads == 1:
        return unknown(walk, node)
    total = torch.full((heads,), FREE)
    for held in known:
        others = [axis for axis in range(held.dim()) if axis != held.dim() - 3]
        per_head = walk.mix(node, held, others).movedim(-3, 0).flatten(1)[:, 0]
        walk.union.unify(total, per_head)
        total = walk.union.find(torch.where(total < 0, per_head, total))
    for operand, held in zip((query, key, value), labels, strict=True):
        own = walk.sizes.shape(operand)
        if held is None and own[-3] > 1:
            walk.follow(node, operand, len(own) - 3, total if own[-3] == heads else None)
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, Node):
        own = walk.sizes.shape(mask)
        if len(own) > 2 and own[-3] > 1:
            walk.couple(node, mask, len(own) - 3, total)
    return total[:, None, None].expand(walk.sizes.shape(node))


def convolution(walk: Walk, node: Node) -> Tensor | None:
    """Channels end in a convolution, and pass through one that keeps each apart."""
    source, weight = node.args[:2]
    held = walk.of(source)
    if held is None:
        return unknown(walk, node)
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    if any(varies(held, axis) for axis in range(held.dim()) if axis != 1):
        return unknown(walk, node)
    if weight.op != "get_attr":
        return walk.refuse(node, f"the weight of {describe(node)} is computed, not stored")
    vector = along(held, 1)
    if groups == 1:
        walk.cut_weight(node, weight, 1, vector)
        walk.consumers[node] = vector
        return None
    sizes = walk.sizes.shape(node)
    if groups != held.shape[1] or sizes[1] != groups:
        return unknown(walk, node)
    walk.cut_weight(node, weight, 0, vector)
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if isinstance(bias, Node):
        walk.cut_weight(node, bias, 0, vector)
    return vector.reshape(-1, *[1] * (len(sizes) - 2)).expand(sizes)


def _repeated(held: Tensor | None, heads: int) -> Tensor | None:
    """Keys or values of fewer heads, each for its group of queries."""
    if held is None or held.shape[-3] == heads:
        return held
    return held.repeat_interleave(heads // held.shape[-3], -3)


def without_shared(held: Tensor | None, axis: int = -3) -> Tensor | None:
    """Entries that are the same all along an axis belong to no unit; None where that is all of them."""
    if held is None or held.shape[axis] == 1:
        return held
    labels = once(held)
    shared = (labels == labels.narrow(axis, 0, 1)).all(axis, keepdim=True)
    left = torch.where(shared, FREE, labels)
    return left.expand(held.shape) if bool((left >= 0).any()) else None


def _unshared(one: Tensor | None, two: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of two operands, entries that are the same in every batch entry along which the other one differs."""
    return _against(one, two), _against(two, one)


def _against(held: Tensor | None, other: Tensor | None) -> Tensor | None:
    if held is None or other is None:
        return held
    for back in range(3, min(held.dim(), other.dim()) + 1):
        if held is not None and varies(other, other.dim() - back):
            held = without_shared(held, -back)
    return held


def _want(walk: Walk, node: Node, operand: Node, held: Tensor | None, other: Tensor | None) -> None:
    """An operand without labels of its own that has the cut batch axis in full is cut along it too."""
    if held is not None or other is None:
        return
    own = walk.sizes.shape(operand)
    for back in range(3, min(len(own), other.dim()) + 1):
        if own[-back] > 1 and varies(other, other.dim() - back):
            walk.follow(node, operand, len(own) - back, along(other, other.dim() - back))
            return
