"""A graph as code: what it says, what it leaves out, and that reading changes nothing."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from surgery.diagnostics import SurgeryError
from surgery.inspection import code
from surgery.passes.provenance import stamp

F = nn.functional
GOLDEN = Path(__file__).parent / "golden"

EXPRESSIONS = [
    (lambda x: x + 2.5, "x + 2.5"),
    (lambda x: torch.add(x, x.sin(), alpha=2), "x + 2 * sin_1"),
    (lambda x: torch.div(x, 3, rounding_mode="floor"), 'div(x, 3, rounding_mode="floor")'),
    (lambda x: -x, "-x"),
    (lambda x: x**2, "x ** 2"),
    (lambda x: x[:, 1:3], "x[:, 1:3]"),
    (lambda x: x[:, 0], "x[:, 0]"),
    (lambda x: x[..., ::2], "x[:, :, ::2]"),
    (lambda x: x[:, None].sin(), "sin(x[:, None])"),
    (lambda x: x[None, :, None, None].sin(), "sin(x[None, :, None, None])"),
    (lambda x: x[..., None].sin(), "sin(x[:, :, :, None])"),
    (lambda x: x.transpose(1, 2), "x.transpose(1, 2)"),
    (lambda x: x.reshape(x.shape[0], -1), "x.reshape(B, -1)"),
    (lambda x: x.new_zeros(x.shape[0] * 2), "x.new_zeros([B * 2])"),
    (lambda x: x.mean(-1, keepdim=True), "x.mean([-1], keepdim=True)"),
    (lambda x: x.to(torch.float64), "x.to(f64)"),
    (lambda x: torch.cat([x, x], 1), "cat([x, x], 1)"),
    (lambda x: F.softmax(x, -1), "softmax(x, -1)"),
    (lambda x: F.gelu(x, approximate="tanh"), 'gelu(x, approximate="tanh")'),
    (lambda x: F.layer_norm(x, [4], eps=1e-6), "layer_norm(x, [4], eps=1e-06)"),
    (lambda x: torch.einsum("bij,bkj->bik", x, x), 'einsum("bij,bkj->bik", [x, x])'),
    (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "sdpa(x, x, x, is_causal=True)"),
    (lambda x: x > 0, "x > 0"),
]

UNSEEN = [
    lambda x: F.dropout(x, 0.5, training=False),
    lambda x: x.contiguous(),
    lambda x: x.to(torch.float32),
    lambda x: x + 0,
    lambda x: x * 1,
    lambda x: (x.sin().cumsum(1), x)[1],
]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def last_line(text: str) -> str:
    return [line for line in text.splitlines() if " = " in line][-1].partition(" = ")[2].partition("  #")[0].strip()


@pytest.mark.parametrize(("function", "expected"), EXPRESSIONS, ids=[expected for _, expected in EXPRESSIONS])
def test_an_operator_reads_as_a_person_writes_it(function, expected, exported):
    assert last_line(code(exported(Function(function), torch.randn(2, 3, 4)))) == expected


@pytest.mark.parametrize("function", UNSEEN)
def test_dead_and_trivial_nodes_are_not_shown(function, exported):
    def model(x):
        return function(x).cos()

    text = code(exported(Function(model), torch.randn(2, 3, 4)))
    assert last_line(text) == "cos(x)"
    assert "1 operation " in text


def test_a_dropout_that_is_at_work_is_shown(exported):
    text = code(exported(Function(lambda x: F.dropout(x, 0.5, training=True)), torch.randn(2, 3)))
    assert last_line(text) == "dropout(x, p=0.5, train=True)"


def test_what_writes_in_place_is_shown(exported):
    def model(x):
        y = x.clone()
        y[:, 0] = 1.0
        return y

    assert "copy" in code(exported(Function(model), torch.randn(2, 3))) or "fill" in code(
        exported(Function(model), torch.randn(2, 3))
    )


def test_a_model_as_captured(tiny, golden):
    golden(GOLDEN / "tiny.code", code(tiny))


def test_a_rewritten_model_tells_the_clause(rewritten, golden):
    golden(GOLDEN / "rewritten.code", code(rewritten))


def test_only_what_was_touched(rewritten, golden):
    golden(GOLDEN / "rewritten-touched.code", code(rewritten, touched=True))


def test_full_folds_nothing(rewritten):
    brief, full = code(rewritten), code(rewritten, full=True)
    assert "same as" in brief and "same as" not in full
    assert full.count("sdpa(") == 3 and brief.count("sdpa(") == 1
    assert full.count("✂ f32[B, 36] weight [36, 4]") == 3


def test_a_block_that_differs_is_told(tiny, clause):
    linear = next(node for node in tiny.graph.nodes if node.target is torch.ops.aten.gelu.default and "1" in node.name)
    stamp(linear, clause)
    text = code(tiny)
    assert "# blocks.2: same as blocks.0" in text and "# blocks.1.mlp" in text


def test_a_block_of_another_shape_is_told(tiny):
    layer = tiny.get_submodule("blocks.2.proj")
    layer.weight = nn.Parameter(torch.zeros(12, 11))
    text = code(tiny)
    assert "# blocks.1: same as blocks.0" in text and "h2_proj = " in text


def test_a_block_that_reads_something_else_is_told(exported):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(3, 3)]) for _ in range(3))

        def forward(self, x, a, b):
            for index, block in enumerate(self.blocks):
                x = block[0](x) * (b if index == 2 else a)
            return x

    args = [torch.randn(2, 3) for _ in range(3)]
    text = code(exported(Two(), *args))
    assert "h2_0 = linear(mul_2, " in text


def test_one_site(rewritten):
    text = code(rewritten, site="blocks.1.mlp")
    assert "# blocks.1.mlp" in text and "blocks.0" not in text and "sdpa" not in text
    assert code(rewritten, site="blocks.*.mlp", full=True).count("linear(") == 6


def test_a_site_that_is_not_there_names_the_nearest(tiny):
    with pytest.raises(SurgeryError) as caught:
        code(tiny, site="block.0")
    fault = caught.value.diagnostics[0]
    assert fault.code == "S361" and fault.help == "did you mean `blocks.0`?"


def test_two_lists_of_blocks_get_names_of_their_own(exported):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Stack(), Stack()

        def forward(self, x):
            return self.decoder(self.encoder(x))

    text = code(exported(Both(), torch.randn(2, 3)))
    assert "encoder0_0 = linear(x, " in text and "# decoder.layers.1: same as decoder.layers.0" in text


def test_reading_changes_nothing(rewritten):
    before = rewritten.code, [dict(node.meta) for node in rewritten.graph.nodes]
    code(rewritten)
    assert (rewritten.code, [dict(node.meta) for node in rewritten.graph.nodes]) == before


def test_lines_are_python_once_weights_have_a_name(rewritten):
    text = code(rewritten, full=True)
    ast.parse(re.sub(r"(?<![\w\])])\.?(?:\w+\.)*(?:weight|bias)\b", "weight", text))


def test_names_are_never_used_twice(rewritten):
    lines = [line for line in code(rewritten, full=True).splitlines() if " = " in line]
    names = [name for line in lines for name in line.partition(" = ")[0].strip().split(", ") if name != "_"]
    assert len(names) == len(set(names))
