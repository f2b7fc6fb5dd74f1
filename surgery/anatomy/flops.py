"""Floating-point operations of a graph's calls, from shapes alone."""

from collections.abc import Iterable
from math import prod

import torch
from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import aten, is_op, placeholders, shape, value

PRODUCTS = {aten.linear: 0, aten.matmul: 0, aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
"""Matrix products and the place of their left operand."""
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)


def flops_per_sample(graph_module: GraphModule, nodes: Iterable[Node]) -> int:
    """Two per multiply-add of products, attention and convolutions, at the length of the example inputs."""
    batch = next((sizes[0] for sizes in map(shape, placeholders(graph_module)) if sizes), 1)
    return sum(map(_flops, nodes)) // example(batch)


def example(size: int | torch.SymInt) -> int:
    """A size as it was in the example inputs; 0 for one that depends on data, such as the tokens of an expert."""
    return size if isinstance(size, int) else int(size.node.hint or 0)


def _flops(node: Node) -> int:
    if node.op != "call_function" or not isinstance(value(node), torch.Tensor):
        return 0
    made = prod(map(example, shape(node)))
    packet = getattr(node.target, "overloadpacket", None)
    if packet in PRODUCTS:
        return 2 * made * example(shape(node.args[PRODUCTS[packet]])[-1])
    if is_op(node, *CONVOLUTIONS):
        return 2 * made * prod(map(example, shape(node.args[1])[1:]))
    if is_op(node, aten.scaled_dot_product_attention):
        query, key, read = (shape(operand) for operand in node.args[:3])
        return 2 * prod(map(example, query[:-1])) * example(key[-2]) * (example(query[-1]) + example(read[-1]))
    return 0
