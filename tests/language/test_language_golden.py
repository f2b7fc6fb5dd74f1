"""Specs, and beside each its tree, its canonical text and its YAML."""

from pathlib import Path

import pytest

from surgery.language import Clause, Spec, format, format_yaml, parse

SPECS = sorted(path for path in (Path(__file__).parent / "specs").iterdir() if path.suffix in (".surgery", ".yaml"))


def outline(spec: Spec) -> str:
    lines = [line for clause in spec.clauses for line in _clause(clause)]
    return "".join(f"{line}\n" for line in [*lines, *(f"below {line!r}" for line in spec.below)])


def _clause(clause: Clause):
    yield from (f"above {line!r}" for line in clause.above)
    yield _line("clause", clause.verb, clause.span)
    for piece in clause.pieces:
        yield "  " + _line(type(piece).__name__.lower(), piece, piece.span)
    for tail in clause.tails:
        yield "  " + _line(type(tail).__name__.lower(), tail, tail.span)
    if clause.beside:
        yield f"beside {clause.beside!r}"


def _line(name, node, span) -> str:
    line, column = span.source.position(span.start)
    return f"{name} {node}  ·  {line}:{column} {span.text!r}"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_spec_reads_and_prints_as_recorded(path, golden):
    spec = parse(path)
    golden(path.with_name(f"{path.name}.tree"), outline(spec))
    golden(path.with_name(f"{path.name}.text"), format(spec))
    golden(path.with_name(f"{path.name}.as-yaml"), format_yaml(spec))
    assert parse(format(spec)) == spec
    assert parse(format_yaml(spec), name="x.yaml") == spec
