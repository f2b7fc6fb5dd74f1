import base64
import html as markup
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from surgery.diagnostics import SurgeryError
from surgery.report import charts, plots
from surgery.report.highlight import highlight
from surgery.report.html import TEMPLATES, html
from surgery.report.images import png, sample_grids

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Balance(HTMLParser):
    """Collects ids and attributes, and fails where tags do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.ids, self.attributes = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page():
    return html(json.loads(Path(__file__).with_name("sample.json").read_text(encoding="utf-8")))


def test_same_document_gives_the_same_bytes(sample, page):
    assert html(sample) == page


def test_is_self_contained(page):
    parsed = Balance(page)
    assert "<script" not in page
    assert "@import" not in page
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value)
    assert set(re.findall(r"https?://[^\s\"<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert re.findall(r"url\((?!#)", page) == []


def test_is_small_and_well_formed(page):
    ids = Balance(page).ids
    assert len(ids) == len(set(ids))
    assert len(page.encode()) < 2_000_000


def test_every_reference_inside_a_figure_is_there(page):
    ids = set(Balance(page).ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= ids


def test_is_accessible(page):
    parsed = Balance(page)
    images = [value for tag, name, value in parsed.attributes if tag == "img" and name == "alt"]
    drawings = [value for tag, name, value in parsed.attributes if tag == "svg" and name == "aria-label"]
    assert len(images) == page.count("<img") == 3
    assert len(drawings) == page.count("<svg") == 9
    assert all(images + drawings)
    assert '<html lang="en">' in page


def test_tells_the_whole_story(page):
    text = markup.unescape(re.sub(r"<[^>]+>", "", page))
    for fact in (
        "−26.1 % parameters",
        "Fréchet distance",
        "require accuracy >= 0.95",
        "blocks.*.adaLN_modulation.*.weight",
        "8 of 576 × 96 → 576 × 33",
        "per-vector |c| tail, masked (the paper's)",
        "‖t‖ = 11.5 is 11.8 × the mean ‖y‖. Predicted from norms and mean projections: 0.9930.",
        "y − mean y exactly",
        "not faster: eager, batch 1 (1.02×)",
        "8 bits of mantissa, 9 layers",
        "sha256:3f9a",
    ):
        assert fact in text


def test_raw_json_is_the_document(sample, page):
    raw = re.search(r"<summary>the whole report as JSON</summary><pre><code>(.*?)</code>", page, re.DOTALL)
    assert json.loads(markup.unescape(raw[1])) == sample


def test_what_is_too_large_for_a_page_is_left_to_the_file(sample):
    sample["findings"] = [{"kind": "other", "rows": [[i] * 100 for i in range(4000)], "note": "kept"}]
    page = html(sample)
    assert len(page) < 200_000
    assert "left to report.json" in page
    assert "kept" in page


def test_absent_sections_are_left_out(bare):
    page = html(bare)
    Balance(page)
    assert re.findall(r'<section id="(\w+)"', page) == ["provenance"]


def test_notes_and_data_are_told(bare):
    page = html(bare | {"notes": ["frechet is not measured"], "data": {"reference": "digits", "sha256": "cedc"}})
    assert "frechet is not measured" in page
    assert "cedc" in page


def test_sections_of_the_sample(page):
    found = re.findall(r'<section id="(\w+)"', page)
    links = re.findall(r'<a href="#(\w+)"', page)
    assert found == ["result", "cut", "samples", "controls", "criteria", "latency", "proof", "embeddings", "provenance"]
    assert links == found


def test_failure_is_told_at_the_top(failed):
    page = html(failed)
    assert "not proven:" in page
    assert "does not hold" in page
    assert page.index("not proven:") < page.index('<section id="result"')


def test_text_is_escaped(bare):
    hostile = '<script>alert("x")</script>'
    bare["model"]["reference"] = bare["spec"] = hostile
    bare["device"] = {"name": hostile}
    bare["requirements"] = [{"text": hostile, "holds": True, "place": hostile}]
    page = html(bare)
    Balance(page)
    assert "<script" not in page


def test_malformed_document_is_refused(bare):
    with pytest.raises(SurgeryError):
        html(bare | {"quality": None})


def test_infinite_distance_stays_on_the_page(sample):
    sample["controls"][4]["metrics"]["frechet"] = float("inf")
    found = charts.controls(sample)
    assert found["rows"][-1]["at"] == 100.0
    assert "inf" in found["rows"][-1]["values"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme):
    """WCAG 2 AA: 4.5 to 1 for text, on the page, on a panel and, for code, on its softer ground."""
    blocks = re.findall(r":root \{(.*?)\}", (TEMPLATES / "report.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6});", blocks[theme]))
    for ground in ("paper", "panel", "soft"):
        for text in ("ink", "muted", "kept", "removed", "third", "good", "fair", "poor"):
            low, high = sorted(luminance(colours[name]) for name in (ground, text))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


HIGHLIGHTED = [
    ("prune tail 66% of class embeddings", [("verb", "prune"), ("number", "66%"), ("preposition", "of")]),
    ("require loss <= 1.02x", [("verb", "require"), ("comparison", "<="), ("number", "1.02x")]),
    ("model zoo:digits-dit # c", [("verb", "model"), ("comment", "# c")]),
    ("prune 1%; prune 2%", [("verb", "prune"), ("number", "1%"), ("verb", " prune"), ("number", "2%")]),
    ("route mlp k=32", [("verb", "route"), ("key", "k"), ("number", "32")]),
    ('attention in "a.0.*"', [("verb", "attention"), ("preposition", "in"), ("string", '"a.0.*"')]),
    ("model: x\n- share: 66%", [("key", "model"), ("key", "- share"), ("number", "66%")]),
]


@pytest.mark.parametrize(("spec", "words"), HIGHLIGHTED)
def test_highlight_marks_words(spec, words):
    found = re.findall(r'<span class="(\w+)">(.*?)</span>', highlight(spec))
    assert [(kind, markup.unescape(text)) for kind, text in found] == words


@given(st.text(alphabet=st.sampled_from("pruneof 66%<>&\"'=;:#-\n.x0"), max_size=60))
def test_highlight_adds_and_loses_nothing(spec):
    assert Markup(re.sub(r'<span class="\w+">|</span>', "", highlight(spec))).unescape() == spec


def decoded(uri: str) -> numpy.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return (matplotlib.image.imread(io.BytesIO(data), format="png") * 255).round().astype(numpy.uint8)


def test_png_keeps_every_pixel():
    pixels = numpy.arange(3 * 5 * 4, dtype=numpy.uint8).reshape(3, 5, 4)
    assert (decoded(png(pixels)) == pixels).all()


def test_sample_grids_hold_a_class_per_row():
    images = numpy.arange(6 * 2 * 2, dtype=numpy.uint8).reshape(6, 2, 2)
    found = {"kind": "samples", "labels": [1, 0, 1, 0, 1, 0], "before": images.tolist(), "after": (images + 7).tolist()}
    before, after, difference = sample_grids(found)
    assert before["labels"] == ["0", "1"]
    grid = decoded(before["source"])
    assert grid.shape == (2 + 1 + 2, 3 * 2 + 2, 4)
    assert (grid[:2, :2, 0] == images[1]).all()
    assert (grid[3:, 3:5, 0] == images[2]).all()
    assert (grid[2, :, 3] == 0).all()
    assert (decoded(difference["source"])[:2, :2, :3] == 7).all()
    assert after["alt"] == "samples after: 2 classes, 3 samples each, one class per row"


# shape of the samples → pixels of a grid
GRIDS = [
    ((120, 8, 8), (12 * 9 - 1, 10 * 9 - 1)),
    ((24, 64, 64, 3), (6 * 65 - 1, 4 * 65 - 1)),
    ((4, 256, 130, 3), (64, 32)),
]


@pytest.mark.parametrize(("shape", "size"), GRIDS)
def test_grids_stay_small(shape, size):
    samples = numpy.full(shape, 90, dtype=numpy.uint8).tolist()
    labels = sorted(i % 12 if shape[0] == 120 else i // 4 for i in range(shape[0]))
    grid = decoded(sample_grids({"labels": labels, "before": samples, "after": samples})[0]["source"])
    assert grid[0, 0, :3].tolist() == [90, 90, 90]
    assert grid.shape[0] * grid.shape[1] <= 110_000
    assert grid.shape[1] >= size[1]
    assert grid.shape[0] >= size[0]


def test_tensors_are_grouped_by_name(sample):
    groups = charts.tensor_groups(sample["actions"][0])
    assert [(row["count"], row["before"], row["after"]) for row in groups][:2] == [
        (8, 8 * 576 * 96, 8 * 576 * 33),
        (1, 192 * 96, 192 * 33),
    ]
    assert groups[0]["width"] == 100
    assert groups[0]["kept"] == pytest.approx(100 * 33 / 96, abs=0.01)
    assert groups[1]["name"] == "final_layer.adaLN_modulation.1.weight"


@pytest.mark.parametrize("draw", [plots.sweep, plots.tail, plots.class_variance, plots.directions, plots.spectrum])
def test_figures_follow_the_theme_and_have_no_dates(sample, draw):
    svg = draw(sample["findings"][0])
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert "var(--kept, #0067a5)" in svg
    assert "<metadata" not in svg
    assert "<style" not in svg


def test_a_silent_head_is_told(sample):
    """Where the largest |c| are negative, the activation has silenced them: a finding, said beside the spectrum."""
    captions = [item["caption"] for item in charts.embeddings(sample["findings"][0])["spectra"]]
    assert not any("silent" in caption for caption in captions)
    sample["findings"][0]["head"] |= {"negative": 4, "magnitude_share": 0.3, "activation_share": 0.02}
    told = (
        "4 of the 4 largest |c| are negative, and silent after it: together they hold 30 % of |c| and 2 % of |SiLU(c)|"
    )
    assert told in charts.embeddings(sample["findings"][0])["spectra"][1]["caption"]


def test_spectrum_without_a_cut_is_of_one_colour(sample):
    found = sample["findings"][0]
    found["spectrum"]["magnitude"].pop("kept")
    found.pop("cut")
    assert "--removed" not in plots.spectrum(found)
    assert "--removed" not in plots.tail(found)
