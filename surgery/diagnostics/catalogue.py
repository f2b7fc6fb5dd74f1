"""The page behind every code: what it means, an example, the cure."""

from pathlib import Path

PAGES = Path(__file__).resolve().parent / "codes"


def codes() -> tuple[str, ...]:
    """Every code that has a page, sorted."""
    return tuple(sorted(page.stem for page in PAGES.glob("S[0-9][0-9][0-9].md")))


def page(code: str) -> str | None:
    """The page of a code as Markdown, or None."""
    path = PAGES / f"{code}.md"
    return path.read_text(encoding="utf-8") if code in codes() else None


def title(code: str) -> str:
    """The first line of a code's page, without its `# `."""
    return (page(code) or "").partition("\n")[0].removeprefix("# ")
