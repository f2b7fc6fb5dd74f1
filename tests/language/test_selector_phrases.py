"""Selectors as data."""

import pytest

from surgery.diagnostics import SpecError
from surgery.language import Part, Range, Selector, parse_selector

READS = {
    "class embeddings": Selector(("class", "embeddings")),
    "Class Embeddings": Selector(("class", "embeddings")),
    "mlp channels": Selector(("mlp", "channels")),
    "attention in layers 4..11 except layer 7": Selector(
        ("attention",), (Part(("layers",), (Range(4, 11),)),), (Part(("layer",), (Range(7, 7),)),)
    ),
    "heads [3,5] of layer 2": Selector(
        ("heads",), (Part(("layer",), (Range(2, 2),)),), indices=(Range(3, 3), Range(5, 5))
    ),
    "layers [0..3, 9, -1]": Selector(("layers",), indices=(Range(0, 3), Range(9, 9), Range(-1, -1))),
    'module "model.layers.*.mlp"': Selector(("module",), glob="model.layers.*.mlp"),
    "module blocks.3.mlp": Selector(("module",), glob="blocks.3.mlp"),
    '"blocks.*"': Selector(("module",), glob="blocks.*"),
    '"attention in layers 4..11"': Selector(("attention",), (Part(("layers",), (Range(4, 11),)),)),
}


@pytest.mark.parametrize(("text", "selector"), READS.items(), ids=READS)
def test_reads(text, selector):
    assert parse_selector(text) == selector
    assert parse_selector(str(selector)) == selector


FAULTS = {
    "": "S101",
    "mlp 4 channels": "S113",
    "heads 66%": "S113",
    "heads 1.5": "S113",
    "attention by layer": "S113",
    "class embeddings <= 3": "S113",
    "class; time": "S113",
    "class k=3": "S113",
    "[3, 5]": "S113",
}


@pytest.mark.parametrize(("text", "code"), FAULTS.items(), ids=FAULTS)
def test_faults(text, code):
    with pytest.raises(SpecError) as error:
        parse_selector(text)
    assert [fault.code for fault in error.value.diagnostics] == [code]


def test_place_and_text():
    selector = parse_selector("attention in  layers 4..11")
    assert selector.text == "attention in layers 4..11"
    assert selector.span.text == "attention in  layers 4..11"
