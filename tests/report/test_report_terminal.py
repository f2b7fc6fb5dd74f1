import io
import subprocess
import sys

import pytest
from rich.console import Console

from surgery.report.terminal import render, render_plan


def printed(show, document, *, width=80, encoding="utf-8", colour=False, **options) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show(document, Console(file=file, width=width, force_terminal=colour, no_color=not colour), **options)
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_fits_the_terminal_in_its_encoding(sample, width, encoding):
    text = printed(render, sample, width=width, encoding=encoding)
    assert max(map(len, text.splitlines())) <= width
    assert text.isascii() == (encoding != "utf-8")
    assert "\x1b" not in text


def test_tells_the_whole_story(sample):
    text = printed(render, sample, width=100)
    for fact in (
        "zoo:digits-dit",
        "prune tail 66% of class embeddings",
        "quickstart.surgery:4:1",
        "width 96 → 33",
        "309 k parameters",
        "66% of 96 is 63.36: 63 removed",
        "98.2 %",
        "per-vector |c| tail, masked (the paper's)",
        "−26.1 %",
        "14.2 MB",
        "not faster: eager, batch 1 (1.02×)",
        "✓ masked == compacted (bfloat16, batch 2)  3.1e-02, allowed 3.2e-02",
        "✓ require accuracy >= 0.95  measured 0.9815",
        "saved in build/quickstart",
    ):
        assert fact in text
    assert "✗" not in text


def test_controls_stand_beside_the_cut_in_order(sample):
    text = printed(render, sample)
    places = [text.index(name) for name in ("this cut", "shared |c| tail + least", "random, seed 4", "head, masked")]
    assert places == sorted(places)


def test_failure_is_seen_without_colour(failed):
    text = printed(render, failed)
    assert "✗ require accuracy >= 0.95  measured 0.91" in text
    assert "1 requirement failed" in text
    assert "nothing was saved: the proof above does not hold" in text
    assert "FAILED require accuracy" in printed(render, failed, encoding="ascii")


def test_colour_judges(failed):
    text = printed(render, failed, colour=True)
    assert "\x1b[1;31m0.93×" in text
    assert "\x1b[32m1.00×" in text


def test_least_report(bare):
    assert printed(render, bare).split() == ["zoo:digits-dit"]


def test_analysis_alone(bare, sample):
    text = printed(render, bare | {"findings": sample["findings"]})
    assert "centred, of c and of y" in text
    assert "nothing was saved" not in text


def test_notes_are_told(sample):
    assert "note: frechet is not measured" in printed(render, sample | {"notes": ["frechet is not measured: no data"]})


def test_skipped_mode_says_why(sample):
    text = printed(render, sample | {"latency": [{"mode": "compiled", "batch": 1, "skipped": "no C++ compiler"}]})
    assert "compiled: skipped, no C++ compiler" in text


def test_square_brackets_are_no_markup(sample):
    sample["actions"][0]["clause"] = "prune heads [bold] of layer 2"
    assert "prune heads [bold] of layer 2" in printed(render, sample)


@pytest.fixture
def plan(sample) -> dict:
    kept = {key: sample[key] for key in ("model", "selectors", "actions")}
    size = {name: sample["size"][name] for name in ("parameters", "bytes")} | {"flops": {"saved": 700_000}}
    return {"format": "surgery.plan/1", **kept, "size": size, "notes": ["nothing is compensated yet"]}


def test_plan_is_short_and_counts_what_it_hides(plan):
    text = printed(render_plan, plan)
    assert "class embeddings → conditioning: t_embedder + y_embedder → 9 modulation layers" in text
    assert "12 tensors hidden: --full lists them" in text
    assert "blocks.0" not in text
    assert "700 k saved" in text
    assert "nothing is compensated yet" in text


def test_full_plan_lists_every_tensor(plan):
    text = printed(render_plan, plan, full=True)
    assert all(tensor["name"] in text for tensor in plan["actions"][0]["tensors"])
    assert "576 × 96" in text
    assert "hidden" not in text


def test_plan_of_nothing(plan):
    assert "nothing to cut" in printed(render_plan, plan | {"actions": []})


def test_terminal_needs_neither_torch_nor_matplotlib():
    code = "import sys, surgery.report.terminal; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
