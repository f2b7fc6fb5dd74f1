"""The clock: order of rounds, repeats, budgets; and latency rows, eager and compiled."""

import gc
import time

import pytest
import torch
from torch import nn

from surgery import interleave
from surgery.interleave import Timing, interleaved, quartiles, speedup, turn
from surgery.verify.timing import latency


def spin(milliseconds: float):
    def call() -> None:
        end = time.thread_time_ns() + milliseconds * 1e6
        while time.thread_time_ns() < end:
            pass

    return call


def timing(*samples: float) -> Timing:
    return interleave.timing_of(tuple(samples))


def test_a_slower_candidate_measures_slower_by_its_factor():
    times = interleaved({"slow": spin(3), "fast": spin(1)}, runs=7, warmup=1, clock="cpu")
    assert times["slow"].runs == times["fast"].runs == 7
    assert 2.5 < speedup(times["slow"], times["fast"]).median < 3.5
    assert 0.9 < times["fast"].low_ms <= times["fast"].median_ms <= times["fast"].high_ms


def test_rounds_rotate_and_reverse():
    assert [turn(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["a", "c", "b"],
        ["c", "a", "b"],
        ["c", "b", "a"],
    ]


def test_each_candidate_runs_once_a_round():
    calls = []
    long = spin(0.3)
    interleaved({name: (lambda name=name: (calls.append(name), long())) for name in "abc"}, runs=4, warmup=1)
    rounds = [calls[3 + 3 * number : 6 + 3 * number] for number in range(4)]
    assert rounds == [turn(["a", "b", "c"], number) for number in range(4)]


def test_a_short_call_repeats_within_a_sample():
    calls = []
    times = interleaved({"tiny": lambda: calls.append(1)}, runs=3, warmup=2)
    assert len(calls) > 3 * 10
    assert times["tiny"].median_ms < interleave.SHORTEST_SAMPLE_MS


def test_a_budget_ends_the_rounds_but_not_before_three():
    times = interleaved({"slow": spin(5)}, runs=1000, warmup=1, budget_s=0)
    assert times["slow"].runs == interleave.FEWEST_ROUNDS


def test_collection_is_off_within_a_round_and_as_it_was_after():
    seen = []
    interleaved({"look": lambda: (seen.append(gc.isenabled()), time.sleep(0.001))}, runs=2, warmup=1)
    assert seen[1:] == [False, False] and gc.isenabled()


@pytest.mark.parametrize("wrong", [{"candidates": {}}, {"candidates": {"a": spin(0)}, "runs": 0}])
def test_nothing_to_time_is_an_error(wrong):
    with pytest.raises(ValueError, match="nothing to time"):
        interleaved(**wrong)


def test_an_unknown_clock_is_an_error():
    with pytest.raises(ValueError, match="unknown clock `sun`"):
        interleaved({"a": spin(0)}, clock="sun")


def test_ratios_are_formed_within_a_round():
    """A neighbour that slows one round down for both leaves their ratio alone."""
    ratio = speedup(timing(2.0, 20.0, 2.0), timing(1.0, 10.0, 1.0))
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2) and ratio.clear
    assert not speedup(timing(1.0, 2.0, 1.0), timing(2.0, 1.0, 1.0)).clear


def test_quartiles():
    assert quartiles((4.0, 1.0, 3.0, 2.0, 5.0)) == (2, 3, 4)
    assert quartiles((7.0,)) == (7, 7, 7)


class Linear(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return torch.relu(self.layer(x))


def test_latency_rows_by_position_and_by_keyword():
    before, after = Linear(256), Linear(256)
    rows = latency(before, after, lambda batch: {"x": torch.ones(batch, 256)}, batches=(1, 4), compiled=False, runs=5)
    assert [(row["mode"], row["batch"], row["runs"]) for row in rows] == [("eager", 1, 5), ("eager", 4, 5)]
    for row in rows:
        assert row["before_ms"] > 0 and row["low"] <= row["ratio"] <= row["high"]
    assert latency(before, after, lambda batch: (torch.ones(batch, 256),), batches=(), runs=3) == []


def test_a_ratio_that_holds_one_says_so():
    from surgery.verify.timing import row

    same = row("eager", 1, timing(1.0, 1.1, 0.9, 1.0), timing(1.0, 1.0, 1.0, 1.0))
    assert same["note"].startswith("not faster: the middle half of the runs is 0.97x to 1.02x")
    slower = row("eager", 1, timing(1.0, 1.0), timing(2.0, 2.0))
    assert "note" in slower
    assert "note" not in row("eager", 1, timing(2.0, 2.0), timing(1.0, 1.0))


def test_compiled_latency_is_measured(cxx):
    torch.compiler.reset()
    module = nn.ReLU()
    mine = torch.compile(module, backend="eager")
    mine(torch.ones(1, 8))
    settings = torch._dynamo.config.suppress_errors, torch._inductor.config.compile_threads
    rows = latency(module, module, lambda batch: (torch.ones(batch, 8),), batches=(2,), runs=3)
    assert [row["mode"] for row in rows] == ["eager", "compiled"]
    assert rows[1]["batch"] == 2 and rows[1]["ratio"] > 0
    assert settings == (torch._dynamo.config.suppress_errors, torch._inductor.config.compile_threads)
    mine(torch.ones(1, 8))


def test_no_compiler_skips_the_compiled_row_and_says_why(inductor_cache):
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        rows = latency(Linear(8), Linear(8), lambda batch: (torch.ones(batch, 8),), batches=(3,), runs=3)
    assert rows[1] == {"mode": "compiled", "batch": 3, "skipped": "no C++ compiler: torch.compile needs g++ or clang++"}


def test_what_cannot_be_compiled_is_skipped_with_the_first_line_of_why(monkeypatch):
    def refuse(module, **settings):
        raise RuntimeError("no backend\nand much more")

    monkeypatch.setattr(torch, "compile", refuse)
    rows = latency(Linear(8), Linear(8), lambda batch: (torch.ones(batch, 8),), batches=(1,), runs=3)
    assert rows[1]["skipped"] == "torch.compile failed: RuntimeError: no backend"


@pytest.fixture
def inductor_cache(monkeypatch, tmp_path):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@pytest.fixture
def cxx():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler on this machine")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_with_events():
    x = torch.ones(512, 512, device="cuda")
    times = interleaved({"one": lambda: x @ x, "four": lambda: [x @ x for _ in range(4)]}, runs=9, device="cuda")
    assert speedup(times["four"], times["one"]).median > 1.5
