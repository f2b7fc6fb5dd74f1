"""A bundle's graph becomes a captured one again, and can be cut further."""

import pytest
import strangers
import torch

import surgery
from surgery.anatomy import capture, inspect
from surgery.anatomy.graphs import owner, shape
from surgery.bundle import save
from surgery.passes.provenance import provenance
from surgery.session.parity import parity

FIRST = "prune tail 50% of class embeddings by greedy compensate=least-squares"
SECOND = "prune tail 4 of class embeddings by greedy compensate=least-squares"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    anatomy = strangers.anatomy_of("Plain")
    compact = strangers.rewrite(anatomy, FIRST).compact
    folder = tmp_path_factory.mktemp("bundles") / "first"
    save(folder, compact, manifest={}, spec=FIRST, report={}, report_html="<html></html>")
    return compact, folder, dict(anatomy.inputs)


def test_shapes_owners_and_marks_are_kept(pruned):
    compact, folder, inputs = pruned
    adopted = capture(surgery.load(folder), inputs)
    for node, saved in zip(adopted.graph.nodes, compact.graph.nodes, strict=True):
        assert node.name == saved.name and owner(node) == owner(saved)
        assert [str(mark) for mark in provenance(node)] == [str(mark) for mark in provenance(saved)]
        known = [size if isinstance(size, int) else "free" for size in shape(node) or ()]
        assert known == [size if isinstance(size, int) else "free" for size in shape(saved) or ()], node


def test_a_pruned_bundle_is_pruned_further(pruned):
    _, folder, inputs = pruned
    anatomy = inspect(surgery.load(folder), inputs)
    (site,) = anatomy.of_kind("conditioning")
    assert (site.width, site.layers) == (8, 3)
    made = strangers.rewrite(anatomy, SECOND)
    assert all(row["holds"] for row in parity(made.compact, made.masked, inputs))
    assert made.compact.get_parameter("table.weight").shape == (5, 4)
    marks = [provenance(node) for node in made.compact.graph.nodes if node.name == site.vector.name]
    assert [mark.clause for mark in marks[0]] == [FIRST, SECOND]


def test_a_reloaded_graph_answers_as_before(pruned):
    compact, folder, inputs = pruned
    with torch.no_grad():
        assert torch.equal(capture(surgery.load(folder), inputs)(**inputs), compact(**inputs))
