"""Every page holds specs and what is said of them: a block of a spec, then a block of output."""

import re
from pathlib import Path

import pytest

from surgery.check import examine
from surgery.diagnostics import Source, render
from surgery.language import read

PAGES = sorted((Path(__file__).parent / "pages").glob("*.md"))
CASE = re.compile(r"```(?P<kind>surgery|yaml)\n(?P<spec>.*?)```\n\n```output\n(?P<output>.*?)```", re.DOTALL)


def said(kind: str, spec: str) -> str:
    _, faults = examine(read(Source(f"my.{kind}", spec)))
    return render(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, golden):
    text = page.read_text(encoding="utf-8")
    assert len(CASE.findall(text)) == text.count("```output") > 0

    def again(case: re.Match) -> str:
        output = said(case["kind"], case["spec"])
        assert output, f"nothing is said of:\n{case['spec']}"
        return f"```{case['kind']}\n{case['spec']}```\n\n```output\n{output}```"

    golden(page, CASE.sub(again, text))
