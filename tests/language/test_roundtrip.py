"""Printing and reading are inverse, for every tree."""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.diagnostics import Source, SpecError
from surgery.language import (
    Clause,
    Comparison,
    List,
    Phrase,
    Quantity,
    Range,
    Ratio,
    Reference,
    Setting,
    Spec,
    Text,
    Word,
    format,
    format_yaml,
    parse,
    read,
    source_of_bytes,
)
from surgery.language.quantities import UNITS
from surgery.language.tree import PREPOSITIONS

CALM = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.one_of(
    st.sampled_from(["prune", "tail", "steps", "null", "model", "data", "true", "on-top", "of_x", "größe", "x"]),
    st.builds("".join, st.tuples(st.sampled_from("aZ_äß日"), st.text("xyz09_-", max_size=5))),
).filter(lambda name: name not in PREPOSITIONS)
words = names.map(Word)
quantities = st.builds(
    Quantity,
    st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False)),
    st.sampled_from(sorted(UNITS)),
)
ranges = st.tuples(st.integers(0, 999), st.integers(0, 999)).map(lambda pair: Range(min(pair), max(pair)))
ratios = st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda pair: Ratio(min(pair), max(pair)))
texts = st.text(max_size=12).map(Text)
printable = st.text(max_size=12).filter(str.isprintable)
references = st.builds(Reference, st.sampled_from(["zoo", "hf", "a.b", "x+y-1"]), printable) | st.sampled_from(
    [Reference("", path) for path in ("./folder", "../a/b", "/abs", "~/x", "a.b", "build/quick-start/")]
)
atoms = st.one_of(words, quantities, ranges, ratios, texts, references)
pieces = atoms | st.lists(atoms, max_size=4).map(lambda items: List(tuple(items)))
some = st.lists(pieces, max_size=3).map(tuple)
phrases = st.builds(Phrase, st.sampled_from(PREPOSITIONS), st.lists(pieces, min_size=1, max_size=3).map(tuple))
comparisons = st.none() | st.builds(Comparison, st.sampled_from(["<=", ">=", "<", ">", "=="]), pieces)
assignments = st.builds(Setting, names, pieces)
comments = printable.map(lambda text: f"#{text}".rstrip())
clauses = st.builds(
    Clause,
    words,
    some,
    st.lists(phrases, max_size=3).map(tuple),
    comparisons,
    st.lists(assignments, max_size=2).map(tuple),
    st.lists(st.tuples(st.booleans(), comments), max_size=2),
    st.just("") | comments,
)


@st.composite
def specs(draw):
    """Clauses with comments where a text can have them: no blank line opens or closes a file."""
    made = []
    for clause in draw(st.lists(clauses, max_size=3)):
        above = _lines(clause.above, bool(made)) + ([""] if draw(st.booleans()) and (made or clause.above) else [])
        made.append(Clause(**{**vars(clause), "above": tuple(above)}))
    below = _lines(draw(st.lists(st.tuples(st.booleans(), comments), max_size=2)), bool(made))
    return Spec(tuple(made), tuple(below))


def _lines(above, started):
    lines = []
    for blank, comment in above:
        lines += [""] if blank and (started or lines) else []
        lines.append(comment)
    return lines


@CALM
@given(specs())
def test_text_reads_back(spec):
    text = format(spec)
    assert parse(text, name="x.surgery") == spec
    assert format(parse(text, name="x.surgery")) == text


@CALM
@given(specs())
def test_yaml_reads_back(spec):
    text = format_yaml(spec)
    assert parse(text, name="x.yaml") == spec
    assert format_yaml(parse(text, name="x.yaml")) == text


@CALM
@given(specs())
def test_text_and_yaml_meet(spec):
    assert format(parse(format_yaml(spec), name="x.yaml")) == format(spec)


fragments = st.lists(
    st.sampled_from(
        [
            "prune",
            "of",
            "66%",
            "%",
            '"',
            "[",
            "]",
            ",",
            "=",
            "k=",
            "<=",
            ";",
            "\n",
            " ",
            "#",
            ":",
            "- ",
            "&a",
            "*a",
            "{",
            "}",
            "'",
        ]
        + ["\t", "|", "zoo:x", "9..4", "1e999", "3pp", "\\", "é", "\u2028", "!x", "?", "steps:\n"]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(fragments | st.text(max_size=40), st.sampled_from(["x.surgery", "x.yaml", "x"]))
def test_no_text_crashes_the_reader(text, name):
    reading = read(Source(name, text))
    for fault in reading.faults:
        assert re.fullmatch(r"S1\d\d", fault.code)
        assert 0 <= fault.span.start <= len(text)
    for clause in reading.spec.clauses:
        assert clause.span.text


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(data):
    try:
        read(source_of_bytes(data, "x"))
    except SpecError as error:
        assert error.diagnostics[0].code == "S011"
