"""A model becomes a graph: torch.export, non-strict, eval mode, batch and sequence dynamic."""

import gc
import inspect
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.adopt import adopt, is_saved
from surgery.anatomy.canonical import canonicalize
from surgery.anatomy.graphs import aten, attribute, placeholders, shape, value
from surgery.anatomy.lines import LINES, Lines, without_lines
from surgery.anatomy.repeats import traced_once
from surgery.diagnostics import CaptureError

Inputs = tuple | Mapping[str, Any]


def capture(model: torch.nn.Module, example_inputs: Inputs) -> GraphModule:
    """The graph of a model's forward pass over pre-dispatch ATen, with the model's own tensors.

    example_inputs: positional (a tuple) or keyword (a mapping) arguments of `forward`. The first axis of every
    tensor is the batch; it becomes symbolic, and so does the second of 2-D and 3-D tensors (a sequence).
    Where the model's code fixes the batch, the graph is captured at that size and `meta["notes"]` says so.
    Weights may be on the meta device; inputs need not be.

    The graph shares its tensors with `model`, which is left as it was. Raises CaptureError (S301, S302), which
    names the line of the model's code that stands in the way.
    """
    if isinstance(model, GraphModule) and "captured" in model.meta:
        return model
    args, kwargs = split_inputs(with_batch(example_inputs, at_least=2))
    if is_saved(model):
        return adopt(model, _by_placeholder(model, args, kwargs))
    _refuse_misfit(model, args, kwargs)
    if any(tensor.is_meta for tensor in model.parameters()):
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    with without_lines(), _without_collecting():
        graph_module = _traced(model, args, kwargs)
    _note_lengths(graph_module)
    graph_module.recompile()
    graph_module.meta |= {"captured": True, LINES: Lines(_traced, model, args, kwargs)}
    return graph_module


def _traced(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> GraphModule:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        graph_module = _export(model, args, kwargs)
    finally:
        for module, mode in training.items():
            module.training = mode
    _drop_assertions(graph_module)
    _name_once(graph_module)
    canonicalize(graph_module)
    return graph_module


def _by_placeholder(graph_module: GraphModule, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    nodes = placeholders(graph_module)
    by_position = dict(zip((node.name for node in nodes), pytree.tree_leaves(args), strict=False))
    return by_position | {node.name: kwargs[node.target] for node in nodes if node.target in kwargs}


def split_inputs(inputs: Inputs) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of example inputs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    raise CaptureError(
        f"example inputs are a {type(inputs).__name__}",
        code="S301",
        help="give a tuple (positional arguments) or a dict (keyword arguments)",
    )


def _refuse_misfit(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Arguments that `forward` does not take are told before anything is traced."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit {type(model).__name__}: {error}",
            code="S301",
            help=f"its forward takes ({', '.join(map(str, signature.parameters.values()))})",
        ) from error


def call(module: Any, inputs: Inputs) -> Any:
    """Call a module with example inputs, positional or keyword."""
    args, kwargs = split_inputs(inputs)
    return module(*args, **kwargs)


def batch_size(inputs: Inputs) -> int:
    """The size of the first axis of the first tensor; 0 without tensors."""
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return sizes[0] if sizes else 0


def with_batch(inputs: Inputs, *, size: int | None = None, at_least: int = 1) -> Inputs:
    """The same inputs at another batch size: rows are repeated in turn, or left out."""
    have = batch_size(inputs)
    want = size or max(have, at_least)
    if not have or want == have:
        return inputs

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != have:
            return leaf
        return leaf[torch.arange(want, device="cpu" if leaf.is_meta else leaf.device).remainder(have).to(leaf.device)]

    return pytree.tree_map(resize, inputs)


def _export(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> GraphModule:
    batch = batch_size((*args, *kwargs.values()))
    try:
        return _export_with(model, args, kwargs, batch, Dim.DYNAMIC)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        first = error
    except Exception as error:
        raise _explain(error) from error
    try:
        graph_module = _export_with(model, args, kwargs, batch, Dim.AUTO)
    except Exception as error:
        raise _explain(error) from error
    if not _has_symbolic_batch(graph_module):
        graph_module.meta["notes"] = (f"the batch is fixed to {batch}: {_first_line(first)}",)
    return graph_module


def _note_lengths(graph_module: GraphModule) -> None:
    """Ids whose number the model's code fixed: a graph of them runs at no other length."""
    fixed = [
        f"the length of `{node.target}` is fixed to {sizes[1]} by the model's code"
        for node in placeholders(graph_module)
        if (sizes := shape(node)) and len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] > 1
        if not value(node).is_floating_point()
    ]
    graph_module.meta["notes"] = (*graph_module.meta.get("notes", ()), *fixed)


def _export_with(model, args: tuple, kwargs: dict, batch: int, kind: Any) -> GraphModule:
    def dims(leaf: Any) -> dict | None:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return None
        named = {0: kind} if leaf.shape[0] == batch else {}
        return named | ({1: Dim.AUTO} if leaf.dim() in (2, 3) and leaf.shape[1] > 1 else {})

    positional, keyword = pytree.tree_map(dims, args), pytree.tree_map(dims, kwargs)

    def export() -> GraphModule:
        program = torch.export.export(model, args, kwargs, dynamic_shapes=keyword or positional, strict=False)
        return program.module(check_guards=False)

    with torch.no_grad(), _quiet():
        return traced_once(model, export, pytree.tree_leaves((args, kwargs))) or export()


@contextmanager
def _quiet() -> Iterator[None]:
    """Export warns, logs and prints half-made graphs; what matters of it is in the exception it raises."""
    muted = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(muted)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Tracing makes a great many small objects, nearly all of which stay: looking through them for garbage, and through
    all else that the process holds, can take as long as tracing them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _has_symbolic_batch(graph_module: GraphModule) -> bool:
    return any(isinstance(sizes[0], torch.SymInt) for sizes in map(shape, placeholders(graph_module)) if sizes)


def _drop_assertions(graph_module: GraphModule) -> None:
    """Metadata assertions pin dtype and device of the day of capture; a rewritten graph must move freely."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target is aten._assert_tensor_metadata.default:
            graph_module.graph.erase_node(node)


def _name_once(graph_module: GraphModule) -> None:
    """A tensor that modules share has many names; the graph reads it by the first alone, so that names tell it apart."""
    first: dict[int, str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.target = first.setdefault(id(attribute(graph_module, node.target)), node.target)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


CURES = (
    ("Could not extract specialized integer", "replace .item() in forward by a tensor operation"),
    ("data-dependent", "take the branch on a tensor's values out of forward, or write it with torch.where"),
    ("Could not guard", "take the branch on a tensor's values out of forward, or write it with torch.where"),
    ("numpy", "keep numpy, .numpy() and .item() out of forward"),
    (
        "not a known type",
        "return tensors, tuples and dicts alone; from transformers, with use_cache=False in the inputs",
    ),
    (
        "must be the arg names",
        "leave out what forward takes by **kwargs alone; from transformers, set it in the model's config",
    ),
    ("must be Tensor", "example inputs are tensors, and whatever else forward takes for its options"),
    ("reduction dim", "check the shapes in example_inputs: does model(**example_inputs) run?"),
    ("must match", "check the shapes in example_inputs: does model(**example_inputs) run?"),
    ("invalid for input of size", "check the shapes in example_inputs: does model(**example_inputs) run?"),
    ("'NoneType' object is not", "give every input that this line reads, such as attention_mask, in example_inputs"),
    ("has no attribute", "give every input that this line reads, such as attention_mask, in example_inputs"),
)
UNKNOWN = "does model(**example_inputs) run? if it does, write the line above with tensor operations alone"


def _explain(error: BaseException) -> CaptureError:
    text = str(error)
    cure = next((cure for sign, cure in CURES if sign in text), UNKNOWN)
    notes = [f"{type(error).__name__}: {_first_line(error)}"]
    place = _model_line(error)
    if place:
        notes.insert(0, place)
    return CaptureError("the model cannot be captured as a graph", code="S302", notes=notes, help=cure)


def _model_line(error: BaseException) -> str | None:
    """`file:line: code` of the deepest frame that is neither torch's nor ours."""
    ours = str(Path(__file__).resolve().parents[1])
    theirs = str(Path(torch.__file__).resolve().parent)
    standard = str(Path(inspect.__file__).resolve().parent)
    files = [(frame, str(Path(frame.filename).resolve())) for frame in traceback.extract_tb(error.__traceback__)]
    frames = [
        frame
        for frame, file in files
        if not file.startswith((ours, theirs)) and frame.filename[:1] != "<" and str(Path(file).parent) != standard
    ]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}:{last.lineno}: {linecache.getline(last.filename, last.lineno or 0).strip()}"
