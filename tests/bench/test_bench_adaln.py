"""The benchmark measures what it says: all ways compute the same, lines and documents have their form."""

import json

import pytest
import torch

from bench import adaln, harness


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(adaln, "SIZES", {"S": (32, 2), "XL": (64, 3)})
    monkeypatch.setattr(adaln.Modulation, "compiled", adaln.Modulation.per_block)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_way_computes_the_same(dtype, batch):
    one = adaln.modulation(48, 17, 3, batch, dtype, "cpu")
    with torch.inference_mode():
        blocks = torch.cat(one.per_block()(), -1)
        for whole in (
            one.hoisted()(),
            one.packed()(),
            one.surgery_hoisted()(),
            torch.cat(one.surgery_per_block()(), -1),
        ):
            assert whole.shape == blocks.shape == (batch, 3 * 6 * 48)
            # Ways differ in the order of 17 sums only: a few units in the last place of values below 4.
            torch.testing.assert_close(whole, blocks, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_compiled_peer_computes_the_same():
    one = adaln.modulation(16, 7, 2, 3, torch.float32, "cpu")
    with torch.inference_mode():
        torch.compiler.reset()
        for eager, compiled in zip(one.per_block()(), one.compiled()(), strict=True):
            torch.testing.assert_close(eager, compiled)


def test_widths():
    assert list(adaln.widths(1152, (0.2, 0.34))) == [
        ("20% (230)", 230),
        ("34% (392)", 392),
        ("34% (416, a multiple of 32)", 416),
    ]


def test_a_line_per_case(tiny, capsys):
    assert harness.main("adaln", adaln.scenes, ["--quick", "--json", "--runs", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({line["case"] for line in lines}) == len(lines) == 2 * 2 * 2 * 5
    for line in lines:
        assert {"case", "ours_ms", "peers_ms", "ratio", "roofline"} == set(line)
        assert {"dense per block", "dense hoisted surgery", "dense per block compiled"} <= set(line["ratio"])
        assert set(line["ratio"]) == set(line["peers_ms"]) and line["ours_ms"] > 0


def test_the_document_and_its_picture(tiny, capsys, tmp_path):
    out = tmp_path / "results" / "tiny.json"
    harness.main("adaln", adaln.scenes, ["--quick", "--runs", "3", "--out", str(out)])
    document = json.loads(out.read_text())
    assert document["format"] == "surgery.bench/1" and document["threads"] == 1
    assert {"command", "date", "device", "versions", "clock"} <= set(document)
    assert all(row["like_for_like"] in row["ratio"] and row["runs"] == 3 for row in document["rows"])
    assert out.with_suffix(".svg").read_text().lstrip().startswith("<?xml")
    assert "DiT-S (32 wide, 2 blocks), bfloat16, batch 8" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--clock", "cpu", "--threads", "2"], ["--fast"], ["--clock", "sun"]])
def test_wrong_options_are_usage_errors(wrong, capsys):
    with pytest.raises(SystemExit) as leave:
        harness.options("a benchmark", wrong)
    assert leave.value.code == 2


@pytest.mark.parametrize(
    ("given", "clock"),
    [([], "cpu"), (["--threads", "2"], "wall"), (["--threads", "0"], "wall"), (["--clock", "wall"], "wall")],
)
def test_the_clock_follows_the_threads(given, clock):
    assert harness.options("a benchmark", given).clock == clock
