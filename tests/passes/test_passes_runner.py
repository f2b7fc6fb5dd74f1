"""The runner: what a pass demands and promises, what its failures look like, and that the graph given stays as it was."""

from dataclasses import dataclass

import pytest
import strangers
import torch

from surgery.anatomy.graphs import attribute
from surgery.diagnostics import SurgeryError
from surgery.passes.provenance import Provenance, provenance, stamp
from surgery.passes.runner import run_passes
from surgery.passes.weights import add_tensor, replace_tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Scripted:
    """A pass whose fault is its option."""

    fault: str
    clause: str = "prune tail 66% of class embeddings"
    place: str = "my.surgery:3:1"
    name: str = "scripted"

    def requires(self, graph_module):
        return "it is Tuesday" if self.fault == "requires" else None

    def run(self, graph_module):
        graph = graph_module.graph
        silu = next(node for node in graph.nodes if node.target is aten.silu.default)
        silu.target = aten.relu.default
        if self.fault == "run":
            raise ZeroDivisionError("half way")
        if self.fault == "lint":
            linear = next(node for node in graph.nodes if node.target is aten.linear.default)
            linear.append(graph.create_node("call_function", aten.relu.default, (list(graph.nodes)[-2],)))
            silu.args = (list(graph.nodes)[-2],)
        if self.fault == "shape":
            name = next(node.target for node in graph.nodes if node.op == "get_attr" and node.target == "last.weight")
            replace_tensor(graph_module, name, attribute(graph_module, name)[:, :3])

    def ensures(self, graph_module):
        return "nothing was gained" if self.fault == "ensures" else None


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("requires", SurgeryError, "pass `scripted` requires: it is Tuesday"),
        ("run", ZeroDivisionError, "half way"),
        ("lint", RuntimeError, "used before it has been defined"),
        ("shape", RuntimeError, "same reduction dim"),
        ("ensures", SurgeryError, "pass `scripted` ensures: nothing was gained"),
    ],
)
def test_a_failing_pass_keeps_its_type_names_its_clause_and_touches_nothing(fault, kind, message):
    graph_module = strangers.anatomy_of("Plain").graph_module
    before = str(graph_module.graph), {name: tensor.clone() for name, tensor in graph_module.named_parameters()}
    with pytest.raises(kind, match=message) as caught:
        run_passes(graph_module, [Scripted(fault)])
    assert caught.type is kind
    assert "in pass `scripted` for `prune tail 66% of class embeddings` (my.surgery:3:1)" in caught.value.__notes__
    assert str(graph_module.graph) == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in graph_module.named_parameters())


def test_a_wrong_shape_names_the_node():
    with pytest.raises(RuntimeError) as caught:
        run_passes(strangers.anatomy_of("Plain").graph_module, [Scripted("shape")])
    assert any(note.startswith("at node `linear") for note in caught.value.__notes__)


def test_an_observer_sees_every_pass_and_its_graph():
    seen = []
    graph_module = strangers.anatomy_of("Plain").graph_module
    passes = [Scripted("none"), Scripted("none", name="second")]
    result = run_passes(graph_module, passes, after=lambda step, graph: seen.append((step.name, graph)))
    assert [name for name, _ in seen] == ["scripted", "second"]
    assert all(graph is result for _, graph in seen)


def test_passes_add_their_marks_in_order_and_once():
    graph_module = strangers.anatomy_of("Plain").graph_module
    result = run_passes(graph_module, [Scripted("none"), Scripted("none", name="second"), Scripted("none")])
    marks = [tuple(mark.by for mark in provenance(node)) for node in result.graph.nodes if provenance(node)]
    assert marks == [("scripted",), ("second",), ("scripted",)]


def test_a_mark_is_put_once():
    node = torch.fx.Graph().placeholder("x")
    mark = Provenance("prune", "a:1:1", "prune")
    stamp(node, mark)
    stamp(node, mark)
    assert provenance(node) == (mark,)


def test_a_new_tensor_takes_a_free_name():
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    assert [add_tensor(module, "inner.bias", torch.zeros(2)) for _ in range(2)] == ["inner.bias", "inner.bias_1"]
    assert add_tensor(module, "mask", torch.ones(2), parameter=False) == "mask" and "mask" in dict(
        module.named_buffers()
    )
