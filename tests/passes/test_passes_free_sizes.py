"""What a pass asks of a free size does not fix it: another length still runs, and its proof is of all lengths."""

import torch
from torch import nn

from surgery.anatomy import inspect
from surgery.anatomy.graphs import aten, placeholders, value
from surgery.passes.refresh import refresh


class Plain(nn.Module):
    def forward(self, x):
        return x.unsqueeze(1) * 1.0


def test_a_table_as_long_as_the_example_leaves_the_length_free():
    graph_module = inspect(Plain(), {"x": torch.randn(2, 24)}).graph_module
    graph_module.register_parameter("table", nn.Parameter(torch.randn(24, 24)))
    graph = graph_module.graph
    product = next(node for node in graph.nodes if node.target is aten.mul.Tensor)
    (given,) = placeholders(graph_module)
    with graph.inserting_before(product):
        size = graph.call_function(aten.sym_size.int, (given, 1))
        part = graph.call_function(aten.slice.Tensor, (graph.get_attr("table"), 0, 0, size))
        part = graph.call_function(aten.slice.Tensor, (part, 1, 0, size))
        part = graph.call_function(aten.contiguous.default, (part,))
    product.args = (product.args[0], part)
    graph_module.recompile()
    refresh(graph_module, graph.nodes)
    assert [axis.node.maybe_as_int() for axis in value(given).shape] == [None, None]
    assert not value(given).fake_mode.shape_env.replacements
    x = torch.randn(3, 17)
    assert torch.equal(graph_module(x=x), x.unsqueeze(1) * graph_module.table[:17, :17])
