"""Every code that is raised has a page, and every page is of a code that is raised."""

import re
from pathlib import Path

import pytest

import surgery
from surgery.diagnostics.catalogue import codes, page, title

PACKAGE = Path(surgery.__file__).parent
RAISED = sorted(
    {code for file in PACKAGE.rglob("*.py") for code in re.findall(r'"(S[0-9]{3})"', file.read_text(encoding="utf-8"))}
)


def test_codes_are_found():
    assert {"S101", "S103", "S114"} <= set(RAISED)


@pytest.mark.parametrize("code", RAISED)
def test_raised_code_has_a_page(code):
    assert code in codes()


@pytest.mark.parametrize("code", codes())
def test_page_is_used_and_well_formed(code):
    assert code in RAISED
    text = page(code)
    assert re.match(r"# [^A-Z\n]", text), "a page opens with a title in lower case"
    assert not title(code).endswith(".")
    assert 4 <= len(text.splitlines()) <= 40


def test_unknown_code_has_no_page():
    assert page("S000") is None
    assert page("../S101") is None
