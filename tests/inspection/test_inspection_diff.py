"""Two graphs side by side: what is found, and what a shift of names must not produce."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from surgery.inspection import diff, difference_text

GOLDEN = Path(__file__).parent / "golden"


class Chain(nn.Module):
    """x → sin × before → linear → sin × after."""

    def __init__(self, before: int = 1, after: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = before, after
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        for _ in range(self.before):
            x = x.sin()
        x = self.linear(x)
        for _ in range(self.after):
            x = x.sin()
        return x.cos()


def told(difference) -> list[tuple[str, str, str]]:
    return [(change.kind, change.before, change.after) for change in difference.nodes]


@pytest.fixture
def chain(exported):
    return lambda **counts: exported(Chain(**counts), torch.randn(2, 3))


def test_a_graph_is_identical_with_itself(tiny):
    difference = diff(tiny, copy.deepcopy(tiny))
    assert difference.identical and difference.same_tensors == len(tiny.state_dict())
    assert difference_text(difference, "a", "b").plain.splitlines()[-1].startswith("identical: ")


def test_an_inserted_node_shifts_nothing(chain):
    difference = diff(chain(), chain(before=2))
    assert told(difference) == [
        ("added", "", "sin_2' = sin(sin_1)"),
        ("changed", "linear_1 = linear(sin_1, linear.weight, linear.bias)",
         "linear_1 = linear(sin_2', linear.weight, linear.bias)"),
    ]  # fmt: skip
    assert not difference.tensors and not difference.identical


def test_a_removed_node_is_told_where_it_stood(chain):
    difference = diff(chain(after=2), chain())
    assert [change.kind for change in difference.nodes] == ["removed", "changed"]
    assert difference.nodes[0].before.endswith("= sin(sin_2)")


def test_both_ways_find_as_much(tiny, rewritten):
    there, back = diff(tiny, rewritten), diff(rewritten, tiny)
    assert there.count("added") == back.count("removed") == 1
    assert there.count("changed") == back.count("changed") == 3
    assert len(there.tensors) == len(back.tensors) == 3


def test_a_cut_reads_well(tiny, rewritten, golden):
    golden(GOLDEN / "tiny-rewritten.diff", difference_text(diff(tiny, rewritten), "tiny", "rewritten").plain + "\n")


def test_full_tells_every_block(tiny, rewritten):
    text = difference_text(diff(tiny, rewritten), "tiny", "rewritten", full=True).plain
    assert all(f"blocks.{index}.modulation.1.weight" in text for index in range(3)) and "*" not in text


def test_some_blocks_are_named(tiny):
    other = copy.deepcopy(tiny)
    for index in (0, 2):
        other.get_submodule(f"blocks.{index}.proj").bias.data.add_(1.0)
    assert "~ blocks.{0,2}.proj.bias  f32[12]  max |Δ| 1, 100.0 % of entries  × 2" in (
        difference_text(diff(tiny, other), "a", "b").plain
    )


def test_changed_values_are_measured(tiny):
    other = copy.deepcopy(tiny)
    weight = other.get_submodule("head").weight
    before = weight.detach().clone()
    weight.data[0] += torch.tensor([0.5] * 6 + [-0.25] * 6)
    (change,) = diff(tiny, other).tensors
    assert (change.kind, change.name) == ("changed", "head.weight")
    assert change.max_abs == pytest.approx(0.5, abs=1e-6) and change.fraction == 0.25
    assert change.norms == pytest.approx((before.double().norm().item(), weight.detach().double().norm().item()))


def test_one_bit_is_a_difference(tiny):
    other = copy.deepcopy(tiny)
    bias = other.get_submodule("head").bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(math.inf))
    difference = diff(tiny, other)
    assert not difference.identical and difference.tensors[0].fraction == 0.25


def test_nan_equals_nan_and_differs_from_numbers(tiny):
    ours, theirs = copy.deepcopy(tiny), copy.deepcopy(tiny)
    for graph_module in (ours, theirs):
        graph_module.get_submodule("head").bias.data[0] = math.nan
    assert diff(ours, theirs).identical
    theirs.get_submodule("head").bias.data[1] = math.nan
    (change,) = diff(ours, theirs).tensors
    assert change.fraction == 0.25 and change.max_abs == math.inf


def test_another_dtype_is_told_with_what_it_costs(tiny):
    other = copy.deepcopy(tiny)
    layer = other.get_submodule("head")
    layer.weight = nn.Parameter(layer.weight.detach().bfloat16())
    (change,) = diff(tiny, other).tensors
    assert (change.kind, change.before, change.after) == ("retyped", "f32[4, 12]", "bf16[4, 12]")
    assert 0 < change.max_abs < 0.01


def test_tensors_without_values_are_not_called_equal(tiny):
    other = copy.deepcopy(tiny)
    layer = other.get_submodule("head")
    layer.weight = nn.Parameter(layer.weight.detach().to("meta"))
    (change,) = diff(tiny, other).tensors
    assert change.kind == "unknown" and change.max_abs is None


def test_new_and_missing_tensors(tiny):
    other = copy.deepcopy(tiny)
    other.register_buffer("mask", torch.ones(2))
    assert [(change.kind, change.name) for change in diff(tiny, other).tensors] == [("added", "mask")]
    assert [(change.kind, change.name) for change in diff(other, tiny).tensors] == [("removed", "mask")]


def test_sizes_count_tied_tensors_once(exported):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.table(x))

    graph_module = exported(Tied(), torch.tensor([1, 2]))
    difference = diff(graph_module, graph_module)
    assert difference.parameters == (21, 21) and difference.bytes == (84, 84)


def test_an_operator_that_was_exchanged(tiny):
    other = copy.deepcopy(tiny)
    for node in other.graph.nodes:
        if node.target is torch.ops.aten.gelu.default:
            node.target = torch.ops.aten.relu.default
    difference = diff(tiny, other)
    text = difference_text(difference, "a", "b").plain
    assert difference.count("removed") == difference.count("added") == 3
    assert "@@ blocks.*.mlp @@ × 3" in text and "- h*_mlp_1 = gelu(h*_mlp_0)" in text


def test_an_argument_that_was_changed(tiny):
    other = copy.deepcopy(tiny)
    node = next(node for node in other.graph.nodes if node.target is torch.ops.aten.layer_norm.default)
    node.args = (*node.args[:4], 1e-3, *node.args[5:])
    (change,) = diff(tiny, other).nodes
    assert change.kind == "changed" and "eps=1e-06" in change.before and "eps=0.001" in change.after


def test_the_document_is_json_and_complete(tiny, rewritten):
    document = json.loads(json.dumps(diff(tiny, rewritten).document("A", "B")))
    assert document["format"] == "surgery.diff/1" and document["identical"] is False
    assert document["size"] == {
        "parameters": {"before": 5476, "after": 4612},
        "bytes": {"before": 21904, "after": 18448},
    }
    assert {change["kind"] for change in document["tensors"]["changes"]} == {"resized"}
    assert document["nodes"]["changes"][0]["marks"][0]["place"] == "quickstart.surgery:4:1"
    assert document["nodes"]["same"] + 3 == len(diff(tiny, tiny).listings[0].statements) + 4


def test_reading_two_graphs_changes_neither(tiny, rewritten):
    before = tiny.code, rewritten.code
    diff(tiny, rewritten)
    assert (tiny.code, rewritten.code) == before
