"""The module tree: what unfolds, what folds, whose clause it names."""

from pathlib import Path

from rich.console import Console

from surgery.inspection import tree

GOLDEN = Path(__file__).parent / "golden"


def render(graph_module, **options) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(tree(graph_module, **options))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def test_an_untouched_model(tiny, golden):
    golden(GOLDEN / "tiny.tree", render(tiny))


def test_a_rewritten_model(rewritten, golden):
    golden(GOLDEN / "rewritten.tree", render(rewritten))


def test_full_unfolds_everything(rewritten):
    text = render(rewritten, full=True)
    assert text.count("qkv Linear") == 3 and "same as" not in text
    assert text.count("✂ prune tail 66% of class embeddings (quickstart.surgery:4)") == 7


def test_only_touched_modules(rewritten):
    text = render(rewritten, touched=True)
    assert "modulation" in text and "qkv Linear" not in text and "embed Linear" not in text


def test_one_site(tiny):
    text = render(tiny, site="blocks.1")
    assert "qkv Linear" in text and "head" not in text and "468" in text


def test_square_brackets_are_text_not_markup(tiny):
    assert "weight f32[12, 4]" in render(tiny)
