"""The language: text and YAML to one tree with spans, and back. Never imports torch."""

from surgery.language.format import format, format_yaml, sentence
from surgery.language.read import Reading, parse, read, source_of, source_of_bytes
from surgery.language.selector import Part, Selector, parse_selector
from surgery.language.tree import (
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
)

__all__ = [
    "Clause",
    "Comparison",
    "List",
    "Part",
    "Phrase",
    "Quantity",
    "Range",
    "Ratio",
    "Reading",
    "Reference",
    "Selector",
    "Setting",
    "Spec",
    "Text",
    "Word",
    "format",
    "format_yaml",
    "parse",
    "parse_selector",
    "read",
    "sentence",
    "source_of",
    "source_of_bytes",
]
