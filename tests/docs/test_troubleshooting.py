"""The guide quotes real messages: each is produced here, and has to stand in the page word for word."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from surgery.report import verdict

PAGE = re.sub(r"\s+", " ", (Path(__file__).parents[2] / "docs" / "when-it-does-not-work.md").read_text("utf-8"))


class Plain(nn.Module):
    """linear → ReLU → linear."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Branching(Plain):
    def forward(self, x):
        h = torch.relu(self.up(x))
        if h.sum() > 0:
            h = h * 2
        return self.down(h)


class Reading(Plain):
    def forward(self, x):
        return super().forward(x)[:, : int(x.abs().max().item() * 10)]


class Wrapping(Plain):
    def forward(self, x):
        return Branching  # neither a tensor nor a tuple or dict of them


class OneBatch(Plain):
    def forward(self, x):
        return super().forward(x.view(2, -1, 8))


class Returning(Plain):
    def forward(self, x):
        h = self.up(x)
        return self.down(torch.relu(h)), h


SPEC = "prune 25% of mlp channels"
FAULTS = [
    (Branching, SPEC, "S302", "the model cannot be captured as a graph"),
    (Branching, SPEC, "S302", "take the branch on a tensor's values out of forward, or write it with torch.where"),
    (Branching, SPEC, "S302", "if h.sum() > 0:"),
    (Reading, SPEC, "S302", "replace .item() in forward by a tensor operation"),
    (Wrapping, SPEC, "S302", "return tensors, tuples and dicts alone; from transformers, with use_cache=False in the inputs"),
    (OneBatch, SPEC, "S322", "runs at one batch size only, and a proof needs several"),
    (OneBatch, SPEC, "S322", "take the number out of forward: write `x.shape[0]`, or -1 in `view` and `reshape`"),
    (Plain, "prune 25% of attention heads", "S104", "no site matches"),
    (Returning, SPEC, "S317", "cannot cut channels of"),
    (Returning, SPEC, "S317", "it is an output of the model"),
    (Returning, SPEC, "S317", "eave this site out with `except`, or prune another part of the model"),
]


@pytest.mark.parametrize("model, spec, code, told", FAULTS)
def test_faults_are_told_as_the_page_says(model, spec, code, told):
    with pytest.raises(surgery.SurgeryError) as caught:
        surgery.compile(
            model().eval(), spec, example_inputs=(torch.randn(2, 3, 8),), controls=False, timing=False
        )
    assert caught.value.diagnostics[0].code == code and code in PAGE
    assert told in str(caught.value) and told in PAGE


def report(flops: tuple[float, float], **row) -> dict:
    latency = {"mode": "eager", "batch": 1, "before_ms": 1.0, "after_ms": 1.0, "ratio": 1.0} | row
    return {"size": {"flops": {"before": flops[0], "after": flops[1]}}, "latency": [latency]}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (verdict.not_faster(report((103, 100))), "arithmetic fell by only 1.03×, so there is little to gain"),
        (verdict.not_faster(report((150, 100))), "but at this size fixed costs per operation outweigh it"),
        (
            verdict.cut_alone(report((1, 1), ratio=1.31 * 1.01, cut_ratio=1.01)),
            "running as a graph gives 1.31×, the cut 1.01×",
        ),
    ],
)
def test_a_report_says_why_as_the_page_says(said, told):
    assert told in said[0] and told in PAGE


def test_whole_groups():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96, "vocab_size": 100}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    inputs = {"input_ids": torch.randint(0, 100, (2, 8)), "use_cache": False}
    model = transformers.LlamaForCausalLM(config).eval()
    plan = surgery.plan(model, "prune 3 of attention heads", example_inputs=inputs)
    told = "whole groups are removed"
    assert any(told in note for note in plan.actions[0].notes) and told in PAGE
