"""Inputs and outputs keep their nesting and, where the class is at hand, their type."""

import dataclasses
import json
import typing

import pytest
import torch
import torch.utils._pytree as pytree
from bundle_cases import capture, contents, same
from torch import Tensor, nn

from surgery.bundle import Output, load, save
from surgery.diagnostics import BundleError


class Pair(typing.NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Answer:
    logits: Tensor
    parts: list[Tensor]
    loss: Tensor | None = None


torch.export.register_dataclass(Answer)


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))
        self.make = make

    def forward(self, x):
        return self.make(x, self.weight)


def bundle(tmp_path, make, *args, **kwargs):
    graph = capture(Returns(make), *args, **kwargs)
    return graph, save(tmp_path / "b", graph, manifest={})


PLAIN = {
    "tensor": lambda x, w: x * w,
    "tuple": lambda x, w: (x, x * w),
    "nested": lambda x, w: {"a": [x, (w, {"b": x + w})], 7: None, "n": x.shape[0] * 2, "k": 3},
    "empty": lambda x, w: (x + w, [], {}, ()),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_containers(tmp_path, name):
    graph, folder = bundle(tmp_path, PLAIN[name], torch.ones(2, 3))
    x = torch.randn(4, 3)
    expected, found = graph(x), load(folder)(x)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected) and same(found, expected)


def test_nested_inputs(tmp_path):
    def make(x, w):
        return x["a"][0] + x["a"][1] * w + x["b"]

    graph, folder = bundle(tmp_path, make, x={"a": [torch.ones(2, 3), torch.ones(2, 3)], "b": torch.ones(2, 3)})
    given = {"a": [torch.randn(4, 3), torch.randn(4, 3)], "b": torch.randn(4, 3)}
    assert same(load(folder)(x=given), graph(x=given)) and same(load(folder)(given), graph(x=given))


def test_own_types_where_they_are_at_hand(tmp_path):
    graph, folder = bundle(tmp_path, lambda x, w: (Pair(x, x * w), Answer(x + w, [x, w])), torch.ones(2, 3))
    pair, answer = load(folder)(torch.ones(4, 3))
    assert type(pair) is Pair and type(answer) is Answer
    assert same((pair, answer), graph(torch.ones(4, 3))) and answer.loss is None


def test_a_container_where_they_are_not(tmp_path):
    graph, folder = bundle(tmp_path, lambda x, w: (Pair(x, x * w), Answer(x + w, [x, w])), torch.ones(2, 3))
    text = (folder / "graph.json").read_text().replace("test_bundle_structure:", "not_installed:")
    (folder / "graph.json").write_text(text)
    module = load(folder, verify=False)
    pair, answer = module(torch.ones(4, 3))
    expected = graph(torch.ones(4, 3))
    assert isinstance(pair, Output) and isinstance(answer, Output)
    assert (
        same(pair.right, expected[0].right) and same(pair[0], expected[0].left) and same(list(pair), list(expected[0]))
    )
    assert same(answer.logits, answer["logits"]) and answer.loss is None and len(answer) == 2
    assert answer.keys() == ("logits", "parts") and repr(answer).startswith("Answer(logits=")
    with pytest.raises(AttributeError, match="no `nothing`"):
        _ = answer.nothing
    assert json.loads(text) == json.loads(contents(save(folder.parent / "again", module, manifest={}))["graph.json"])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert same(compiled(torch.ones(4, 3))[1].logits, answer.logits)


def test_a_bundle_constructs_only_registered_containers(tmp_path):
    """`subprocess.Popen` is imported, but no library registered it as a container of tensors."""
    import subprocess

    _, folder = bundle(tmp_path, lambda x, w: Answer(x + w, [x]), torch.ones(2, 3))
    text = (folder / "graph.json").read_text().replace("test_bundle_structure:Answer", "subprocess:Popen")
    (folder / "graph.json").write_text(text)
    found = load(folder, verify=False)(torch.ones(2, 3))
    assert isinstance(found, Output) and not isinstance(found, subprocess.Popen)


def test_a_class_that_changed_since_gives_the_container(tmp_path):
    _, folder = bundle(tmp_path, lambda x, w: Answer(x + w, [x]), torch.ones(2, 3))
    (folder / "graph.json").write_text((folder / "graph.json").read_text().replace('"logits"', '"scores"'))
    assert load(folder, verify=False)(torch.ones(2, 3)).scores.shape == (2, 3)


def test_a_container_without_a_description_is_refused(tmp_path):
    class Opaque:
        def __init__(self, value):
            self.value = value

    pytree.register_pytree_node(Opaque, lambda o: ([o.value], object()), lambda values, _: Opaque(values[0]))
    try:
        graph = capture(nn.Linear(3, 3), torch.ones(2, 3))
        info = graph.graph._codegen.pytree_info
        graph.graph._codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(Opaque(1)))
        with pytest.raises(BundleError, match="Opaque") as caught:
            save(tmp_path / "b", graph, manifest={})
        assert caught.value.diagnostics[0].code == "S711"
    finally:
        pytree._deregister_pytree_node(Opaque)


def test_a_graph_that_does_not_nest_is_refused(tmp_path):
    graph = torch.fx.symbolic_trace(nn.Linear(3, 3))
    with pytest.raises(BundleError, match="how its inputs and outputs nest") as caught:
        save(tmp_path / "b", graph, manifest={})
    assert caught.value.diagnostics[0].code == "S711"
