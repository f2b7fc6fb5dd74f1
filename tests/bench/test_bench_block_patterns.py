"""The benchmark of block patterns: a line per way of running the same two decoders, with what the patterns keep."""

import json

import torch

from bench import block_patterns, harness


def test_a_line_per_way(monkeypatch, capsys):
    monkeypatch.setattr(block_patterns, "SIZES", {"vocabulary": 256, "width": 16, "depth": 1, "heads": 2})
    monkeypatch.setattr(block_patterns, "QUICK_LENGTHS", (256,))
    monkeypatch.setattr(block_patterns, "QUICK_SHARES", ("60%",))
    monkeypatch.setattr(block_patterns, "CLAUSE", "sparsify attention {share} via blocks block=16 keep=[sink, window]")
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    assert harness.main("block_patterns", block_patterns.scenes, ["--quick", "--json", "--runs", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"].split(" ", 1)[1] for line in lines] == [
        f"length=256 off=60% {mode}" for mode in ("eager", "compiled")
    ]
    assert all(line["ratio"].keys() == {"dense", "dense-compiled"} for line in lines)
