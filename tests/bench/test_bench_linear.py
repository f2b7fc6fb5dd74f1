"""The block-sparse benchmark compares what computes the same, and names its rows as agreed."""

import json

import pytest
import torch

from bench import harness, linear


@pytest.fixture
def tiny(monkeypatch):
    problem = linear.Problem
    monkeypatch.setattr(linear, "problems", lambda asked: iter(
        [(problem(128, 3, torch.float32, "cpu", backward), ((0.5, 32), linear.CELL)) for backward in (False, True)]
    ))  # fmt: skip
    monkeypatch.setattr(linear, "frozen", lambda x, weight, bias: lambda: torch.nn.functional.linear(x, weight, bias))
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_ours_computes_what_dense_does():
    asked = harness.options("a benchmark", [])
    problem = linear.Problem(96, 5, torch.float32, "cpu")
    x, weight, bias = problem.tensors()
    full = linear.BlockWeight.from_dense(weight, (32, 32), linear.kept_blocks(96, 32, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(linear.ours(full, x, bias, False)(), torch.nn.functional.linear(x, weight, bias))
    gradients = linear.ours(full, x, bias, True)()
    dense = linear.stepped(torch.nn.functional.linear, (x, weight, bias))()
    for one, two in zip((gradients[0], gradients[2]), (dense[0], dense[2]), strict=True):
        torch.testing.assert_close(one, two)
    assert asked.threads == 1


def test_the_share_of_blocks_is_what_it_says():
    mask = linear.kept_blocks(4096, 64, 0.10)
    assert mask.shape == (64, 64) and mask.sum() == 410
    assert torch.equal(mask, linear.kept_blocks(4096, 64, 0.10))


def test_a_line_per_case(tiny, capsys):
    assert harness.main("linear", linear.scenes, ["--json", "--runs", "3"]) == 0
    lines = {line["case"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(lines) == 4
    line = lines["linear density=10% 128x128 block=64 batch=3 fp32"]
    assert {"dense", "dense-compiled"} <= set(line["ratio"]) and line["build_ms"] > 0 and line["roofline"]
    assert "linear+backward density=50% 128x128 block=32 batch=3 fp32" in lines
