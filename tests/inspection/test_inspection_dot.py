"""Graphviz output: it parses, its edges join boxes that exist, and marks stand out."""

import re

import pytest
from lark import Lark

from surgery.inspection import dot
from surgery.passes.provenance import Provenance, stamp

GRAMMAR = r"""
start: "digraph" ID "{" statement* "}"
?statement: (assignment | defaults | subgraph | edge | node) ";"?
assignment: ID "=" value
defaults: KIND attributes
subgraph: "subgraph" ID "{" statement* "}"
edge: ID "->" ID attributes?
node: ID attributes
attributes: "[" (pair ("," pair)*)? "]"
pair: ID "=" value
?value: ID | STRING | NUMBER
KIND.2: /(node|edge|graph)(?=\s*\[)/
ID: /[A-Za-z_]\w*/
NUMBER: /-?[\d.]+/
STRING: /"(\\.|[^"\\])*"/s
%ignore /\s+/
"""


@pytest.fixture(scope="module")
def grammar():
    return Lark(GRAMMAR)


@pytest.mark.parametrize("options", [{}, {"full": True}, {"touched": True}, {"site": "blocks.*.mlp"}])
def test_it_is_graphviz(rewritten, grammar, options):
    parsed = grammar.parse(dot(rewritten, **options))
    boxes = {str(node.children[0]) for node in parsed.find_data("node")}
    ends = {str(end) for edge in parsed.find_data("edge") for end in edge.children}
    assert boxes and ends <= boxes


def test_every_module_is_one_cluster(rewritten):
    labels = dict(re.findall(r'subgraph (cluster_\d+) \{ label="([^"]*)"', dot(rewritten, full=True)))
    assert len(set(labels.values())) == len(labels)
    assert {"blocks", "blocks.0", "blocks.2.mlp", "time"} <= set(labels.values())


def test_touched_nodes_are_coloured_and_say_why(rewritten):
    lines = [line for line in dot(rewritten, full=True).splitlines() if "penwidth=2" in line]
    assert len(lines) == 7
    assert all('tooltip="prune tail 66% of class embeddings (quickstart.surgery:4)"' in line for line in lines)


def test_folded_blocks_are_one_box_that_keeps_the_flow(rewritten, grammar):
    text = dot(rewritten)
    assert text.count("same as blocks.0, ✂ included") == 1
    box = re.search(r"(n\d+) \[label=\"blocks.1 … blocks.2", text)[1]
    assert f"-> {box};" in text and f"{box} ->" in text


def test_quotes_and_backslashes_in_a_clause_are_escaped(tiny, grammar):
    node = next(node for node in tiny.graph.nodes if node.name == "add")
    stamp(node, Provenance('prune 5% of module "a\\b"', "C:\\x.surgery:1:1", "prune"))
    text = dot(tiny)
    grammar.parse(text)
    assert r'tooltip="prune 5% of module \"a\\b\" (C:\\x.surgery:1)"' in text
