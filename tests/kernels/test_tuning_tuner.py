"""The tuner's choice, with a measuring function of the test's own, and what it prunes with real compilations."""

import json

import pytest
import torch
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.resources import Resources
from surgery.kernels.aot.rules import Entry
from surgery.kernels.aot.survey import Row
from surgery.kernels.tuning import Config, shipped
from surgery.kernels.tuning import __main__ as command
from surgery.kernels.tuning.candidates import neighbours
from surgery.kernels.tuning.case import Case, NothingToTune, cases, each_row, in_place
from surgery.kernels.tuning.pick import substituted
from surgery.kernels.tuning.tables import ARCHS, as_json, write
from surgery.kernels.tuning.tune import Trial, alike, best, surveyor, tune

SHIPPED = Config("bf16", 64, "q", {"ROWS": 64}, 4, 2)
OTHER = Config("fp32", 64, "q", {"ROWS": 32}, 4, 2)
VALUES = torch.arange(6.0)


def candidate(warps, stages=2):
    return Config("bf16", 64, "q", {"ROWS": 64}, warps, stages)


def case(launch, *configs):
    return Case("bf16", 64, "q", launch, (SHIPPED, *configs))


def foreseen(config, spilled=0):
    entry = Entry("file", 0, "sm90", "file:kernel", str(config.num_warps), "key", (), 1)
    faults = (f"spills {spilled} bytes",) if spilled else ()
    return [Row(entry, Resources(spill_bytes=spilled), False, faults)]


def fine(config):
    return foreseen(config)


def test_neighbours_are_the_row_first_then_each_other_once():
    found = neighbours(SHIPPED, "gfx942")
    assert found[0] == SHIPPED and len(found) == len({str(each) for each in found}) == 3 * 3 * 2
    assert {each.num_stages for each in found} == {1, 2}
    assert {each.blocks["ROWS"] for each in found} == {32, 64, 128}


def times(milliseconds):
    """Measures what was launched last by its warps."""
    launched = []

    def launch(config):
        launched.append(config.num_warps)
        return VALUES

    def measure(call):
        call()
        return milliseconds[launched[-1]]

    return launch, measure


def test_the_fastest_right_candidate_wins():
    launch, measure = times({4: 2.0, 2: 1.0, 8: 3.0})
    trials = list(tune([case(launch, candidate(2), candidate(8))], fine, measure))
    assert [trial.milliseconds for trial in trials] == [2.0, 1.0, 3.0]
    assert best(trials) == candidate(2)


def test_a_gain_within_noise_keeps_the_shipped_row():
    launch, measure = times({4: 2.0, 2: 1.99})
    assert best(list(tune([case(launch, candidate(2))], fine, measure))) == SHIPPED


def test_a_candidate_that_spills_is_never_launched():
    launched = []

    def launch(config):
        launched.append(config.num_warps)
        return VALUES

    def survey(config):
        return foreseen(config, 8 if config.num_warps == 2 else 0)

    trials = list(tune([case(launch, candidate(2))], survey, lambda call: 1.0))
    assert trials[1].refused == "spills 8 bytes" and 2 not in launched


def test_wrong_results_and_failed_launches_are_refused_whatever_their_speed():
    def launch(config):
        if config.num_warps == 8:
            raise RuntimeError("out of resource\nmore of it")
        return VALUES + (config.num_warps == 2)

    trials = list(tune([case(launch, candidate(2), candidate(8))], fine, lambda call: 1.0))
    assert [trial.refused for trial in trials] == [
        None,
        "other results than the shipped row",
        "RuntimeError: out of resource",
    ]
    assert best(trials) == SHIPPED


def test_a_shipped_row_that_fails_leaves_nothing_to_compare_with():
    def launch(config):
        if config == SHIPPED:
            raise RuntimeError("no")
        return VALUES

    trials = list(tune([case(launch, candidate(2))], fine, lambda call: 1.0))
    assert all("nothing to compare with" in trial.refused for trial in trials)
    assert best(trials) is None


def test_a_shipped_row_that_spills_is_replaced_by_anything_right():
    trials = [Trial(None, SHIPPED, refused="spills 8 bytes"), Trial(None, candidate(2), 5.0)]
    assert best(trials) == candidate(2)


@pytest.mark.parametrize(
    ("ours", "right", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.05], [1.0, 2.0], True),
        ([1.0, 2.2], [1.0, 2.0], False),
        ([1.0, float("nan")], [1.0, 2.0], False),
        ([1.0, float("-inf")], [1.0, float("-inf")], True),
        ([1.0, 0.0], [1.0, float("-inf")], False),
    ],
)
def test_alike_up_to_a_share_of_the_largest(ours, right, same):
    assert alike([torch.tensor(ours)], [torch.tensor(right)], 4e-2) is same


def test_a_candidate_stands_in_for_its_own_row_alone():
    with substituted("none", "sm90", (SHIPPED, OTHER)):
        with in_place("none", "sm90", candidate(8)):
            assert set(map(str, shipped("none", "sm90"))) == {str(candidate(8)), str(OTHER)}
        assert shipped("none", "sm90") == (SHIPPED, OTHER)


def test_inputs_are_made_at_the_first_launch():
    made = []

    def prepare(row, device):
        made.append(row)
        return lambda: shipped("none", "interpreter")[-1].num_warps

    with substituted("none", "interpreter", (SHIPPED,)):
        (offered,) = each_row("none", torch.device("cpu"), prepare)
        assert not made
        assert [offered.launch(candidate(warps)) for warps in (2, 8)] == [2, 8]
    assert made == [SHIPPED]


def test_a_table_nobody_can_run_is_named():
    with pytest.raises(NothingToTune, match="nothing says how to run nowhere"):
        cases("nowhere", torch.device("cpu"))


def test_the_whole_flow_writes_a_table_that_says_how_it_was_measured(tmp_path, monkeypatch, capsys):
    before = {arch: [as_json(SHIPPED), as_json(OTHER)] for arch in ARCHS}
    write(tmp_path / "none.json", before)
    how = {"gpu": "a chip", "versions": {"triton": "3"}, "date": "2026-01-01", "command": "tune"}
    monkeypatch.setattr(command, "TABLES", tmp_path)
    monkeypatch.setattr(command, "cases", lambda table, device: iter([case(lambda config: VALUES, candidate(8))]))
    monkeypatch.setattr(command, "circumstances", lambda: how)
    asked = command.command_line().parse_args(["none", "--out", str(tmp_path / "new.json"), "--jobs", "1"])
    speeds = iter([2.0, 1.0])
    assert command.tuned(asked, "sm90", fine, lambda call: next(speeds)) == 0
    after = json.loads((tmp_path / "new.json").read_text())
    assert after == {**before, "sm90": [as_json(candidate(8)), as_json(OTHER)], "measured": {"sm90": how}}
    assert json.loads((tmp_path / "none.json").read_text()) == before
    assert "2.0000 ms" in capsys.readouterr().out


def test_nothing_measured_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "cases", lambda table, device: iter([case(lambda config: VALUES)]))
    asked = command.command_line().parse_args(["none", "--out", str(tmp_path / "new.json"), "--jobs", "1"])
    assert command.tuned(asked, "sm90", lambda config: foreseen(config, 8), lambda call: 1.0) == 1
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_compiled_by_the_files_that_read_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    row = next(row for row in shipped("block_decode", "sm90") if (row.dtype, row.dim) == ("bf16", 64))
    with Pool(1) as pool:
        found = surveyor(pool, "block_decode", "sm90")(row)
    assert {each.entry.file for each in found} == {"block_decode"}
    assert all(each.used.registers for each in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no table nowhere"),
        (["block_decode"], "no GPU here"),
        (["block_decode", "--arch", "sm70"], "sm70"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_done_is_said(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
