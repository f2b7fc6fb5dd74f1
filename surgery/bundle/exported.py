"""`model.pt2`: the same graph as torch.export saves it, for programs that have torch alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec

from surgery.bundle.faults import EXPORT
from surgery.bundle.structure import PLAIN, names_of
from surgery.bundle.value import Symbols, Value, value_of
from surgery.diagnostics import BundleError
from surgery.passes.graph_copy import copy_graph_module

PT2 = "model.pt2"
Inputs = Mapping[str, Any] | tuple


def write_pt2(path: Path, graph_module: GraphModule, inputs: Inputs) -> None:
    """Export the graph with the free sizes it has, save it, read it back, and compare it with the graph.

    inputs   of one forward pass, by name or in order. Outputs of a library's own classes become plain dicts.
    Raises BundleError (S716) where torch.export does not take the graph, or what it saved computes something else.
    """
    plain = _plainly(graph_module)
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    try:
        with torch.no_grad():
            shapes = _free(plain, args, kwargs)
            program = torch.export.export(plain, args, kwargs, dynamic_shapes=shapes, strict=False)
            torch.export.save(program, path)
            again = torch.export.load(path).module()
            for fed in ((args, kwargs), _longer(plain, args, kwargs)):
                _compare(plain(*fed[0], **fed[1]), again(*fed[0], **fed[1]))
    except BundleError:
        raise
    except Exception as error:  # torch.export raises its own kinds, torch's and Python's
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _fault(f"torch.export does not take the graph: {first.strip()[:200]}") from error


def _plainly(graph_module: GraphModule) -> GraphModule:
    """A copy whose outputs nest in tuples, lists and dicts only."""
    copied = copy_graph_module(graph_module)
    info = copied.graph._codegen.pytree_info
    copied.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(info.orig_args, info.in_spec, _plain(info.out_spec))))
    copied.recompile()
    return copied


def _plain(spec: TreeSpec) -> TreeSpec:
    if spec.is_leaf():
        return spec
    children = [_plain(child) for child in spec.children()]
    if spec.type in PLAIN.values() or spec.type is dict:
        return TreeSpec(spec.type, spec.context, children)
    return TreeSpec(dict, list(names_of(spec.context, len(children))), children)


def _values(graph_module: GraphModule) -> list[Value | None]:
    symbols = Symbols()
    return [value_of(node, symbols) for node in graph_module.graph.find_nodes(op="placeholder")]


def _leaves(graph_module: GraphModule, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], TreeSpec]:
    return pytree.tree_flatten((args, kwargs), is_leaf=lambda leaf: leaf is None)


def _free(graph_module: GraphModule, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The sizes that the graph leaves open, for torch.export."""
    leaves, spec = _leaves(graph_module, args, kwargs)
    marked = []
    for leaf, value in zip(leaves, _values(graph_module), strict=True):
        open_axes = [axis for axis, size in enumerate(value.shape) if isinstance(size, str)] if value else []
        marked.append(dict.fromkeys(open_axes, Dim.AUTO) if isinstance(leaf, Tensor) else None)
    positional, named = pytree.tree_unflatten(marked, spec)
    return named or positional


def _longer(graph_module: GraphModule, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The same inputs with one more of everything that is open: the first again, behind the last."""
    leaves, spec = _leaves(graph_module, args, kwargs)
    grown = []
    for leaf, value in zip(leaves, _values(graph_module), strict=True):
        for axis, size in enumerate(value.shape) if value and isinstance(leaf, Tensor) else ():
            leaf = torch.cat([leaf, leaf.narrow(axis, 0, 1)], axis) if isinstance(size, str) else leaf
        grown.append(leaf)
    return pytree.tree_unflatten(grown, spec)


def _compare(ours: Any, theirs: Any) -> None:
    pairs = zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
    for one, other in pairs:
        if isinstance(one, Tensor) and not torch.allclose(one.double(), other.double(), 1e-3, 1e-3, equal_nan=True):
            raise _fault(f"what torch.export saved differs from the graph by {float((one - other).abs().max()):.1e}")


def _fault(message: str) -> BundleError:
    return BundleError(message, code=EXPORT, help="leave `--pt2` out: the bundle loads with `surgery.load` all the same")
