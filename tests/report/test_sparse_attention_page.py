"""The page on sparse attention quotes the report and messages word for word; each is produced here."""

import re
from pathlib import Path

import edge_samples
import pytest
import torch
from test_report_terminal import printed
from torch import nn

import surgery
from surgery.report import edges
from surgery.report.terminal import render
from surgery.targets.gate_training import BIAS_RATE, Aimed
from surgery.training.objective import Constrained

TEXT = (Path(__file__).parents[2] / "docs" / "sparse-attention.md").read_text(encoding="utf-8")
PAGE = re.sub(r"\s+", " ", TEXT)


def test_the_excerpt_of_a_report_is_what_a_report_looks_like(sample):
    shown = printed(render, sample | {"findings": [edge_samples.edges()]}).splitlines()
    excerpt = [line[4:] for line in TEXT.splitlines() if line.startswith("    ") and "attention edges" in line or "▓▒▒░" in line]
    assert len(excerpt) == 2
    assert all(line.rstrip() in [each.rstrip() for each in shown] for line in excerpt)


def test_warnings_and_reasons_are_quoted_as_they_are_told():
    never = edge_samples.training()
    for row in never["history"]:
        row["feasible"] = False
    assert edges.warnings(never)[0] in PAGE
    for normalize, text in edges.NORMALIZED.items():
        assert normalize in PAGE and any(part in PAGE for part in re.split(r"[:,] ", text))
    assert edges.multipliers(never).split(" 1.1")[0] in PAGE


def test_the_objective_is_written_as_it_is_coded():
    memory, rate = (f"{value:g}".lstrip("0") for value in (Constrained.MEMORY, Constrained.RATE))
    least, most = f"{Constrained.LEAST:g}".lstrip("0"), f"{Constrained.MOST:g}"
    assert f"c = {memory} c + .1 (loss − target)" in PAGE
    assert f"λ = clip(λ · exp({rate} · clip(gain · c, −1, 1)), {least}, {most})" in PAGE
    assert (Aimed(1.0, room=1.0).GAIN, Aimed(1.0, room=0.0).GAIN) == (10.0, 100.0) and "from 10 to 100" in PAGE
    assert BIAS_RATE == 10.0 and "ten times as fast" in PAGE


class Attending(nn.Module):
    """One layer of attention, of two heads."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.mixed(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def test_gates_without_data_are_refused_as_the_page_says():
    with pytest.raises(surgery.SurgeryError) as caught:
        surgery.compile(
            Attending().eval(), "sparsify attention 90% via gates", example_inputs=(torch.randn(2, 3, 8),), timing=False
        )
    (fault,) = caught.value.diagnostics
    assert fault.code == "S323" and f"error[S323]: {fault.message}" in PAGE and fault.help in PAGE


@pytest.mark.parametrize("line", [line.strip() for line in TEXT.splitlines() if line.startswith("    sparsify")])
def test_clauses_of_the_page_are_good_ones(line):
    assert surgery.check(line).operations[0].verb == "sparsify"
