"""Read a graph: print it as code, as a tree or as Graphviz, and tell two of them apart. Nothing here edits."""

from surgery.inspection.code import code
from surgery.inspection.difference import Difference, NodeChange, diff
from surgery.inspection.difference_text import difference_text
from surgery.inspection.document import document
from surgery.inspection.dot import dot
from surgery.inspection.graphs import open_graph
from surgery.inspection.tensor_diff import TensorChange
from surgery.inspection.tree import tree

__all__ = [
    "Difference",
    "NodeChange",
    "TensorChange",
    "code",
    "diff",
    "difference_text",
    "document",
    "dot",
    "open_graph",
    "tree",
]
