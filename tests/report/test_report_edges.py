"""How findings about edges, training and induction are told, in the terminal and on the page."""

import html as markup
import re

import edge_samples
import pytest
from test_report_html import Balance, decoded
from test_report_terminal import printed

from surgery.report import edges, training_plots, verdict, wording
from surgery.report.edge_images import head_maps
from surgery.report.html import html
from surgery.report.terminal import render, render_plan

WRITTEN = [
    (wording.kept, (0.00413,), "0.41 %"),
    (wording.kept, (0.0,), "0 %"),
    (wording.kept, (1.0,), "100 %"),
    (wording.kept, (0.2134,), "21.3 %"),
    (wording.kept, (0.000021,), "0.0021 %"),
    (wording.off, (0.9,), "90 %"),
    (wording.off, (0.996,), "99.6 %"),
    (wording.off, (0.99871,), "99.87 %"),
    (wording.off, (0.999871,), "99.987 %"),
    (wording.off, (1.0,), "100 %"),
    (wording.numbers, ([6, 4, 5, 9],), "4..6, 9"),
    (wording.numbers, ([2, 3],), "2, 3"),
    (wording.numbers, ([],), ""),
]


@pytest.mark.parametrize(("write", "arguments", "text"), WRITTEN)
def test_wording(write, arguments, text):
    assert write(*arguments) == text


@pytest.fixture
def sparse(sample):
    """A report of a sparsified model: its size is the same but for a few biases."""
    found = [edge_samples.edges(), edge_samples.training(), edge_samples.induction(), edge_samples.healing()]
    sizes = {"parameters": {"before": 1_000_000, "after": 1_000_032}}
    return sample | {"findings": found, "size": sizes, "criteria": [], "latency": []}


@pytest.fixture
def large(sample):
    found = [edge_samples.edges(12, 12, 64), edge_samples.training(4000), edge_samples.induction(12, 12)]
    return sample | {"findings": found}


FACTS = (
    "99.6 % asked for, 99.57 % of the possible edges are off",
    "64 rows of 128 tokens",
    "normalize=all: the softmax still runs over all keys",
    "2 of 32 heads are dead: 6, 7 of layer 0",
    "layers 0..3: dense attention, masked: edges are chosen per input",
    "best at step 400 of 400 steps",
    "allowed 0.0142",
    "layer 1 head 7",
    "heal steps=200",
    "held-out distance 0.00448, 0.0400 at the beginning",
)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_fits_the_terminal_in_its_encoding(sparse, large, width, encoding):
    for document in (sparse, large):
        text = printed(render, document, width=width, encoding=encoding)
        assert max(map(len, text.splitlines())) <= width
        assert text.isascii() == (encoding != "utf-8")


def test_terminal_tells_the_whole_story(sparse):
    text = re.sub(r"\s+", " ", printed(render, sparse, width=200))
    for fact in (*FACTS, "over what is allowed", "multiplier between 1.1 and 4"):
        assert fact in text


def test_page_tells_the_whole_story(sparse):
    text = markup.unescape(re.sub(r"<[^>]+>", "", html(sparse)))
    for fact in (*FACTS, "attention edges off", "6: dead", "99.6 % asked for"):
        assert fact in text


def test_a_model_that_kept_its_parameters_is_not_told_as_smaller(sparse):
    assert "parameters" not in verdict.headline(sparse)
    assert "99.57 % of attention edges off" in verdict.headline(sparse)
    assert '<span class="name">parameters</span>' not in html(sparse)


ACTION = {
    "clause": edge_samples.CLAUSE,
    "place": edge_samples.PLACE,
    "operation": "sparsify",
    "site": "blocks.0.attention + 3 more",
    "kind": "attention",
    "before": {"edges": "100%"},
    "after": {"edges": "0.4%"},
    "tensors": [],
    "saved": {"parameters": 0, "bytes": 0, "flops": 0},
    "notes": [],
    "choice": {"via": "gates", "normalize": "all"},
}


def test_a_plan_says_how_many_edges_stay_and_that_no_parameters_go(sample):
    plan = {"format": "surgery.plan/1", "model": sample["model"], "actions": [ACTION], "size": {}, "notes": []}
    text = printed(render_plan, plan, width=100)
    assert "edges 100% → 0.4%" in text and "no parameters" in text
    assert "via gates, normalize=all" in text


def test_what_was_added_is_not_told_as_kept_or_removed(sparse):
    tensors = [{"name": f"blocks.{layer}.attn.gate_bias", "before": [0], "after": [8]} for layer in range(4)]
    sparse["actions"] = [ACTION | {"tensors": tensors, "saved": {"parameters": -32, "bytes": -128, "flops": 0}}]
    page = html(sparse)
    assert "32 parameters added" in page and "32 parameters added" in printed(render, sparse, width=120)
    assert 'class="key"' not in page and 'class="bar"' not in page


SCALES = [
    (edges.DECADES, [0.0, 0.0005, 0.001, 0.005, 0.05, 0.5, 1.0], "·░░▒▓██"),
    (edges.QUARTERS, [0.0, 0.0005, 0.25, 0.3, 0.6, 0.8, 1.0], "·░░▒▓██"),
]


@pytest.mark.parametrize(("scale", "shares", "strip"), SCALES)
def test_a_strip_marks_every_head(scale, shares, strip):
    assert "".join(edges.mark(share, scale) for share in shares) == strip


LEGENDS = [
    ([0.0, 0.05], edges.DECADES, "· none kept, ▓ under 10 %"),
    ([0.0, 0.3, 0.5], edges.QUARTERS, "· none kept, ▒ under 50 %"),
    ([0.0, 0.0], edges.DECADES, "· none kept"),
    ([1.0], edges.QUARTERS, "█ 75 % or more"),
]


@pytest.mark.parametrize(("kept", "scale", "legend"), LEGENDS)
def test_marks_are_explained_on_the_scale_that_tells_heads_apart(kept, scale, legend):
    found = {"sites": [{"kept": kept}]}
    assert edges.limits(found) == scale and edges.legend(found) == legend


def test_reasons_with_numbers_of_their_own_are_one_line_in_the_terminal():
    found = edge_samples.edges(3)
    for site, text in zip(found["sites"], ("edge: 3.0x dense", "edge: 2.6x dense", "dense: 0.9x"), strict=True):
        site["lowered"] = text
    assert len(edges.lowered(found)) == 3
    assert edges.lowered_briefly(found) == ["layers 0, 1: edge: 3.0x dense (of layer 0)", "layer 2: dense: 0.9x"]


def test_page_is_self_contained_small_and_the_same_every_time(large, sparse):
    page = html(large)
    parsed = Balance(page)
    ids = parsed.ids
    assert len(ids) == len(set(ids))
    assert len(page.encode()) < 1_000_000, "twelve layers of twelve heads"
    images = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "src")]
    assert len([source for source in images if source.startswith("data:image/png;base64,")]) == 144 == len(images)
    assert html(sparse) == html(sparse)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_maps_show_which_edges_there_are():
    site = edge_samples.edges(1, 2, 16)["sites"][0]
    dead, live = [[0] * 16 for _ in range(16)], [[0] * 16 for _ in range(16)]
    live[3][1], live[9][9] = 1, 255
    site["map"] |= {"dense": [live, live], "kept": [dead, live]}
    (group,) = head_maps({"sites": [site, site | {"map": None}]})
    first, second = (decoded(head["source"]) for head in group["heads"])
    gap = first.shape[1] - 32
    shown = second[:, 16 + gap :, 3]
    assert shown.max() > shown[3, 1] > 2 * shown[0, 0] > 0, "a faint edge is seen, and none is fainter"
    assert (shown > shown[0, 0]).sum() == 2
    assert (first[:, 16 + gap :, 3] == shown[0, 0]).all(), "a dead head keeps nothing"
    assert first[9, 9, 3] == second[9, 9, 3] == second[9, 25 + gap, 3] == 255
    assert tuple(second[9, 9, :3]) != tuple(second[9, 25 + gap, :3]), "dense and kept in colours of their own"


def test_training_that_never_met_its_constraint_says_so(sparse):
    found = sparse["findings"][1]
    for row in found["history"]:
        row["feasible"] = False
    found["state"] = "stopped: a loss of nan at step 300"
    text = re.sub(r"\s+", " ", printed(render, sparse, width=200))
    for document in (text, html(sparse)):
        assert "no evaluated state met the constraint" in document
        assert "stopped: a loss of nan at step 300" in document


def test_long_histories_are_drawn_thin():
    rows = [{"step": step, "loss": float(step % 2), "penalty": 0.5} for step in range(1, 8_001)]
    steps, values = training_plots.thinned(rows, "loss")
    assert len(steps) <= training_plots.POINTS and set(values) == {0.5}
    assert training_plots.thinned(rows[:3], "loss") == ([1, 2, 3], [1, 0, 1])


def test_a_beginning_that_stayed_the_best_is_told(sparse):
    first = {"step": 0, "held_out_loss": 0.005, "held_out_penalty": 0.6, "feasible": True}
    found = sparse["findings"][1] | {"best_step": 0, "history": [first, *sparse["findings"][1]["history"][:5]]}
    assert edges.summary(found).startswith("best at step 0 of 5 steps, held-out loss 0.005")
    assert edges.warnings(found)[0].endswith("weights are as they were at the beginning")
    assert "<svg" in html(sparse | {"findings": [found]})


@pytest.mark.parametrize("changes", [{"requested": None}, {"rows": None}, {"normalize": "kept", "via": "topk"}])
def test_what_is_not_known_is_left_out(sample, changes):
    document = sample | {"findings": [edge_samples.edges(**changes)]}
    text = printed(render, document, width=200)
    assert "None" not in text and "nan" not in text
    assert "None asked" not in html(document)


def test_sites_without_mass_or_map_are_told_without(sample):
    found = edge_samples.edges()
    for site in found["sites"]:
        site |= {"mass": [None] * 8, "map": None, "layer": None, "lowered": ""}
    document = sample | {"findings": [found]}
    assert "blocks.0.attention" in printed(render, document, width=160)
    assert "<img" not in html(document)
