"""One fault in all its forms."""

import json
import re

from surgery.diagnostics import Diagnostic, Source, Span, did_you_mean, nearest, render

SOURCE = Source("food.surgery", "prune tail 66% of clas embeddings\nx")
FAULT = Diagnostic(
    "S104",
    "no site matches `clas embeddings`",
    Span(SOURCE, 18, 33),
    "digits-dit has 2 embedding tables",
    ("class (10 × 128), position (16 × 128)",),
    "did you mean `class embeddings`?  `surgery sites zoo:digits-dit` lists all",
)
FULL = """\
error[S104]: no site matches `clas embeddings`
  --> food.surgery:1:19
   |
 1 | prune tail 66% of clas embeddings
   |                   ^^^^^^^^^^^^^^^ digits-dit has 2 embedding tables
   = note: class (10 × 128), position (16 × 128)
   = help: did you mean `class embeddings`?  `surgery sites zoo:digits-dit` lists all
"""


def test_full():
    assert render([FAULT]) == FULL
    assert render([FAULT, FAULT]) == f"{FULL}\n{FULL}"


def test_concise():
    assert render([FAULT], "concise") == "food.surgery:1:19: error[S104]: no site matches `clas embeddings`\n"


def test_json():
    told = json.loads(render([FAULT], "json"))
    assert told["format"] == "surgery.diagnostics/1"
    (one,) = told["diagnostics"]
    assert (one["line"], one["column"], one["end_line"], one["end_column"]) == (1, 19, 1, 34)
    assert one["code"] == "S104" and one["notes"] == list(FAULT.notes)


def test_color_adds_nothing_but_color():
    colored = render([FAULT], color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == FULL


def test_without_a_place():
    assert render([Diagnostic("S010", "cannot read `x`", help="look")]) == (
        "error[S010]: cannot read `x`\n  = help: look\n"
    )


def test_end_of_text_and_ten_lines():
    source = Source("x", "a\n" * 9 + "prune of")
    end = Span(source, len(source.text), len(source.text) + 1)
    assert render([Diagnostic("S101", "the clause ends too early", end)]).splitlines()[1:] == [
        "   --> x:10:9",
        "    |",
        " 10 | prune of",
        "    |         ^",
    ]


def test_long_line_is_cut_around_the_mark():
    source = Source("x", "a" * 500 + " here " + "b" * 500)
    lines = render([Diagnostic("S101", "m", Span(source, 501, 505))]).splitlines()
    assert max(map(len, lines)) < 120
    column = lines[4].index("^^^^")
    assert lines[3][column : column + 4] == "here"


def test_control_characters_do_not_reach_the_terminal():
    source = Source("x", "a \x1b[31m b")
    assert "\x1b" not in render([Diagnostic("S101", "m", Span(source, 2, 3))])


def test_many_are_counted():
    assert render([FAULT] * 25, "concise").splitlines()[-1] == "… and 5 more"


def test_nearest():
    assert nearest("tial", ["tail", "head"]) == "tail"
    assert nearest("PRUNE", ["prune"]) == "prune"
    assert nearest("zebra", ["tail", "head"]) is None
    assert did_you_mean("zebra", ["tail", "head"]) == "one of `tail`, `head`"
    assert did_you_mean("zebra", [f"n{i}" for i in range(20)]) == ""
