import pytest

from surgery.report import verdict, wording
from surgery.report.scales import linear, logarithmic

WRITTEN = [
    (wording.count, (512,), "512"),
    (wording.count, (98_765,), "98.8 k"),
    (wording.count, (1_234_567,), "1.23 M"),
    (wording.count, (675_000_000,), "675 M"),
    (wording.count, (-1500,), "-1.50 k"),
    (wording.size, (928,), "928 B"),
    (wording.size, (1_928_000,), "1.93 MB"),
    (wording.metric, ("accuracy", 0.9815), "98.2 %"),
    (wording.metric, ("frechet", 0.50461), "0.5046"),
    (wording.metric, ("frechet", 12.3456), "12.35"),
    (wording.metric, ("loss", 0.00141), "0.00141"),
    (wording.metric, ("loss", 3e-7), "3.0e-07"),
    (wording.metric, ("loss", 0), "0"),
    (wording.metric, ("loss", None), "–"),
    (wording.metric, ("frechet", float("inf")), "inf"),
    (wording.times, (1.0449,), "1.04×"),
    (wording.times, (None,), "–"),
    (wording.change, (96, 33), "−65.6 %"),
    (wording.change, (10, 12), "+20.0 %"),
    (wording.change, (10_000, 10_001), "0 %"),
    (wording.change, (0, 5), "–"),
    (wording.signed, (-0.1101,), "−0.110"),
    (wording.signed, (-0.0001,), "0.000"),
    (wording.shape, ([576, 96],), "576 × 96"),
    (wording.shape, ([],), "scalar"),
    (wording.plural, (1, "tensor"), "1 tensor"),
    (wording.plural, (1200, "tensor"), "1,200 tensors"),
    (wording.attributes, ({"width": 96, "heads": 4}, {"width": 33, "heads": 4}), "width 96 → 33"),
    (wording.amount, ("0.4%",), 0.4),
    (wording.amount, ("those given",), None),
    (wording.amount, (True,), None),
    (wording.amount, (96,), 96),
    (wording.milliseconds, (4.4239,), "4.42 ms"),
    (wording.measured, ({"measured": 0.98},), "measured 0.98"),
    (wording.measured, ({"measured": 770_608, "before": 1_079_812},), "measured 771 k, 0.714× the original"),
    (wording.measured, ({"measured": None},), "not measured"),
    (wording.milliseconds, (12345.6,), "12,346 ms"),
]


@pytest.mark.parametrize(("write", "arguments", "text"), WRITTEN)
def test_wording(write, arguments, text):
    assert write(*arguments) == text


# metric, before, after, better, spread → level, word
JUDGED = [
    ("frechet", 0.50, 0.505, "lower", None, "good", "same"),
    ("frechet", 0.50, 0.52, "lower", None, "fair", "slightly worse"),
    ("frechet", 0.50, 0.60, "lower", None, "poor", "worse"),
    ("frechet", 0.50, 0.40, "lower", None, "good", "better"),
    ("frechet", 0.50, 0.60, "lower", 0.2, "good", "within spread"),
    ("frechet", 0.50, float("inf"), "lower", None, "poor", "worse"),
    ("output cosine", 1.0, 0.95, "higher", None, "fair", "slightly worse"),
    ("output cosine", 1.0, 0.0, "higher", None, "poor", "worse"),
    ("accuracy", 0.98, 0.97, "higher", None, "good", "same"),
    ("accuracy", 0.98, 0.96, "higher", None, "fair", "slightly worse"),
    ("accuracy", 0.98, 0.91, "higher", None, "poor", "worse"),
    ("accuracy", 0.90, 0.95, "higher", None, "good", "better"),
    ("paired error", 0, 0.1, "lower", None, "none", ""),
    ("paired error", None, 0.1, "lower", None, "none", ""),
    ("paired error", 0, 0, "lower", None, "good", "same"),
    ("loss", 2.0, 2.3, "lower", None, "poor", "worse"),
    ("loss", 0.0042, 0.0101, "lower", None, "good", "same"),
    ("loss", 0.0042, 0.0001, "lower", None, "good", "same"),
    ("loss", 0.0042, 0.06, "lower", None, "fair", "slightly worse"),
    ("loss", 0.0042, 4.0, "lower", None, "poor", "worse"),
]


@pytest.mark.parametrize(("metric", "before", "after", "better", "spread", "level", "word"), JUDGED)
def test_judge(metric, before, after, better, spread, level, word):
    row = {"metric": metric, "before": before, "after": after, "better": better, "spread": spread}
    found = verdict.judge(row)
    assert (found.level, found.word) == (level, word)


def test_headline(sample, failed, bare):
    line = verdict.headline(sample)
    assert line.startswith("−26.1 % parameters · accuracy 98.2 % → 98.2 % · frechet 1.00× · 1.20× faster")
    assert line.endswith("proven")
    assert verdict.headline(failed).endswith("1 requirement failed")
    assert verdict.headline(bare) == ""
    assert verdict.headline(bare | {"findings": sample["findings"]}).startswith("class cosine 0.993 with the shared t")


def test_headline_leads_with_what_says_most(sample):
    sample["quality"].reverse()
    assert "accuracy 98.2 % → 98.2 % · frechet 1.00×" in verdict.headline(sample)


def test_parity_that_fails_is_not_proven(sample):
    sample["parity"][0]["holds"] = False
    assert not verdict.proven(sample)
    assert verdict.headline(sample).endswith("parity failed")


# latency row, FLOPs before and after → sentence
SLOW = [
    ({"before_ms": 4.0, "after_ms": 2.0}, (2, 1), None),
    (
        {"before_ms": 4.0, "after_ms": 4.0},
        (102, 100),
        "not faster: eager, batch 1 (1.00×): arithmetic fell by only 1.02×",
    ),
    ({"before_ms": 4.0, "after_ms": 4.0}, (3, 2), "not faster: eager, batch 1 (1.00×): arithmetic fell 1.50×, but"),
    ({"before_ms": 4.0, "after_ms": 5.0}, (3, 2), "slower: eager, batch 1 (0.80×): no reason was recorded"),
    ({"before_ms": 4.0, "after_ms": 4.0, "why": "narrow"}, (3, 2), "not faster: eager, batch 1 (1.00×): narrow"),
    (
        {"before_ms": 4.0, "after_ms": 3.7, "note": "not faster: the runs overlap"},
        (3, 2),
        "not faster for sure: eager, batch 1 (1.08×): the runs overlap",
    ),
    ({"skipped": "no C++ compiler"}, (3, 2), None),
]


@pytest.mark.parametrize(("row", "flops", "sentence"), SLOW)
def test_what_is_not_faster_says_why(row, flops, sentence):
    size = {"flops": {"before": flops[0], "after": flops[1]}}
    found = verdict.not_faster({"latency": [{"mode": "eager", "batch": 1} | row], "size": size})
    if sentence is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(sentence)


def test_controls_are_sorted_best_first(sample):
    key, rows = verdict.sorted_controls(sample)
    values = [row["metrics"]["frechet"] for row in rows]
    assert key == "frechet"
    assert values == sorted(values)
    for row in sample["controls"]:
        del row["metrics"]["frechet"]
    key, rows = verdict.sorted_controls(sample)
    values = [row["metrics"]["accuracy"] for row in rows]
    assert key == "accuracy"
    assert values == sorted(values, reverse=True)


def test_a_control_without_the_metric_comes_last(sample):
    del sample["controls"][2]["metrics"]["frechet"]
    assert verdict.sorted_controls(sample)[1][-1]["name"] == sample["controls"][2]["name"]


def test_logarithmic_scale():
    places, ticks = logarithmic([0.1, 1.0, 10.0, 0.0])
    assert places[0] == pytest.approx(100 - places[2])
    assert places[1] == pytest.approx(50)
    assert places[3] == 0
    assert [tick["label"] for tick in ticks] == ["0.1", "1", "10"]
    assert logarithmic([0.0]) == ([0.0], [])


def test_linear_scale_stays_inside():
    places, ticks = linear([-5, 50, 200], 0, 100, (0, 100))
    assert places == [0, 50, 100]
    assert [tick["at"] for tick in ticks] == [0, 100]
