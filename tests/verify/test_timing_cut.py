"""How much of a gain is the cut's own, where the uncut graph is measured beside it."""

import torch
from torch import nn

from surgery.report import verdict
from surgery.verify.timing import latency


def test_the_uncut_graph_is_measured_in_the_same_rounds():
    dense, cut = nn.Linear(64, 64), nn.Linear(64, 8)
    rows = latency(dense, cut, lambda b: (torch.zeros(b, 64),), uncut=dense, batches=(2, 8), compiled=False, runs=3)
    assert [row["batch"] for row in rows] == [2, 8]
    assert all(row["cut_ratio"] > 0 for row in rows)


def test_the_report_splits_a_gain():
    row = {"mode": "eager", "batch": 1, "before_ms": 3.0, "after_ms": 2.0, "ratio": 1.5, "cut_ratio": 1.25, "runs": 9}
    (sentence,) = verdict.cut_alone({"latency": [row]})
    assert sentence == "eager, batch 1: running as a graph gives 1.20×, the cut 1.25×"
