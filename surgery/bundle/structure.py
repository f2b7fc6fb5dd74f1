"""How inputs and outputs nest, as JSON and back, without pickle.

    "*"                       a leaf: a tensor, a number or None
    {"tuple": [..]}  {"list": [..]}  {"dict": [[key, ..], ..]}
    {"namedtuple": {"type": "module:Name", "names": [..], "items": [..]}}
    {"object": {"type": "module:Name", "context": .., "names": [..], "fields": [..], "items": [..]}}

An object comes back in its own class only if that class is already imported and registered with torch's pytree by
its library; a bundle imports nothing and constructs no other class. Otherwise it comes back as an `Output`.
"""

import dataclasses
import json
import sys
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import torch.utils._pytree as pytree
from torch.utils._pytree import TreeSpec

from surgery.bundle.faults import STRUCTURE, malformed
from surgery.bundle.output import Form, Output
from surgery.diagnostics import BundleError

LEAF = "*"
DEPTH = 16
PLAIN = {"tuple": tuple, "list": list}


def write_structure(spec: TreeSpec, place: str) -> Any:
    """JSON of a pytree spec. Raises BundleError for containers that have no JSON."""
    if spec.is_leaf():
        return LEAF
    items = [write_structure(child, place) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: items}
    if spec.type in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if spec.type is defaultdict else spec.context
        if not all(isinstance(key, str | int) for key in keys):
            raise _unwritable(place, "a dict with keys other than text and whole numbers")
        return {"dict": [[key, item] for key, item in zip(keys, items, strict=True)]}
    if spec.type is namedtuple:
        names = spec.context._fields
        return {"namedtuple": _write_form(Form("namedtuple", _written(spec.context), "null", names, names), items)}
    if spec.type is Output:
        return {spec.context.container: _write_form(spec.context, items)}
    return {"object": _write_form(_form(spec, place), items)}


def _form(spec: TreeSpec, place: str) -> Form:
    try:
        context = json.dumps(spec.context, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _unwritable(place, f"`{_written(spec.type)}`") from error
    names = names_of(spec.context, spec.num_children)
    known = [f.name for f in dataclasses.fields(spec.type)] if dataclasses.is_dataclass(spec.type) else []
    fields = known + [name for name in names if name not in known]
    return Form("object", _written(spec.type), context, names, tuple(fields))


def _write_form(form: Form, items: list[Any]) -> dict[str, Any]:
    if form.container == "namedtuple":
        return {"type": form.kind, "names": list(form.names), "items": items}
    context = json.loads(form.context)
    return {
        "type": form.kind,
        "context": context,
        "names": list(form.names),
        "fields": list(form.fields),
        "items": items,
    }


def names_of(context: Any, count: int) -> tuple[str, ...]:
    """Field names, where the class was flattened by name: `[names]` (dict-like) or `[[names], [empty]]` (dataclass)."""
    for names in (context, context[0] if isinstance(context, list | tuple) and context else None):
        if isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names):
            return tuple(names)
    return tuple(f"item_{index}" for index in range(count))


def _written(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def read_structure(value: Any, place: str, depth: int = 0) -> TreeSpec:
    """The pytree spec that JSON describes. Raises BundleError."""
    if value == LEAF:
        return pytree.treespec_leaf() if hasattr(pytree, "treespec_leaf") else pytree.LeafSpec()
    if depth > DEPTH:
        raise malformed(place, f"containers are nested deeper than {DEPTH}")
    if not isinstance(value, dict) or len(value) != 1:
        raise malformed(place, 'a structure is "*" or an object with one key')
    ((kind, content),) = value.items()
    if kind in PLAIN:
        return TreeSpec(PLAIN[kind], None, _children(content, place, depth))
    if kind == "dict":
        return _read_dict(content, place, depth)
    if kind == "namedtuple":
        _keys(content, {"type", "names", "items"}, place)
        return _read_namedtuple(content, place, _children(content["items"], place, depth))
    if kind == "object":
        _keys(content, {"type", "context", "names", "fields", "items"}, place)
        return _read_object(content, place, _children(content["items"], place, depth))
    raise malformed(place, f"unknown container `{kind[:60]}`")


def _children(items: Any, place: str, depth: int) -> list[TreeSpec]:
    if not isinstance(items, list):
        raise malformed(place, "a container's items are a list")
    return [read_structure(item, place, depth + 1) for item in items]


def _keys(content: Any, wanted: set[str], place: str) -> None:
    if not isinstance(content, dict) or content.keys() != wanted:
        raise malformed(place, f"a container of this kind has the keys {', '.join(sorted(wanted))}")


def _read_dict(content: Any, place: str, depth: int) -> TreeSpec:
    pairs = content if isinstance(content, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int) for pair in pairs):
        raise malformed(place, "a dict is a list of [key, structure]")
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise malformed(place, "a dict names a key twice")
    return TreeSpec(dict, keys, _children([item for _, item in pairs], place, depth))


def _texts(names: Any, place: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise malformed(place, "names are a list of distinct texts")
    return tuple(names)


def _read_namedtuple(content: dict, place: str, items: list[TreeSpec]) -> TreeSpec:
    names = _texts(content["names"], place)
    if len(names) != len(items) or not isinstance(content["type"], str):
        raise malformed(place, "a namedtuple has a type and a name for each item")
    module, _, name = content["type"].partition(":")
    original = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if (
        pytree.is_namedtuple_class(original)
        and original._fields == names
        and original.__new__.__module__.startswith("namedtuple_")
    ):
        return TreeSpec(namedtuple, original, items)
    return TreeSpec(Output, Form("namedtuple", content["type"], "null", names, names), items)


def _read_object(content: dict, place: str, items: list[TreeSpec]) -> TreeSpec:
    names, fields = _texts(content["names"], place), _texts(content["fields"], place)
    if len(names) != len(items) or not set(names) <= set(fields) or not isinstance(content["type"], str):
        raise malformed(place, "an object has a type and a name, out of its fields, for each item")
    original = _registered(content["type"])
    if original is not None:
        spec = TreeSpec(original, content["context"], items)
        if _builds(spec):
            return spec
    return TreeSpec(Output, Form("object", content["type"], json.dumps(content["context"]), names, fields), items)


def _registered(kind: str) -> type | None:
    """A class its own library registered as a container; no other class is ever constructed."""
    for known in pytree.SUPPORTED_NODES:
        if isinstance(known, type) and known not in (tuple, list, dict, Output) and _written(known) == kind:
            return known
    return None


def _builds(spec: TreeSpec) -> bool:
    """Whether the class, as it is here today, still takes what it gave when the bundle was written."""
    try:
        pytree.tree_unflatten([None] * spec.num_leaves, spec)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return False
    return True


def _unwritable(place: str, what: str) -> BundleError:
    return BundleError(
        f"{place}: {what} cannot be described in a bundle",
        code=STRUCTURE,
        help="let the model take and return tensors in tuples, lists, dicts, named tuples or registered dataclasses",
    )
