"""Can the library's own class take the cut model, with other numbers in its config? Tried, and proven on its outputs."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs, call
from surgery.bundle.tensors import collect
from surgery.models.tokenizer_cut import renumbered as renumbered_tokens
from surgery.reload.names import Gap, gaps, renumbered
from surgery.reload.search import Fields, Search, Wanted, apply
from surgery.verify.outputs import tensors_of

LIBRARY = "transformers"
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""Of the largest output. The same operators on the same tensors mostly give the same bits; of several configs that fit
in shape the one with the least difference is taken."""
MOST_ANSWERS = 6


@dataclass(frozen=True, eq=False)
class Stock:
    """`architecture` can read the bundle by `from_pretrained`, unless `why_not` says why it cannot.

    original  config.json as it was; `config` as it is now, its `changed` fields by path → (before, after)
    gaps      lists of blocks whose numbers are closed up in the bundle
    told      whether the bundle holds config.json; not where the library would read it all the same and make up tensors
    error     the largest difference of its outputs from the graph's, over the largest output
    """

    architecture: str
    original: Mapping[str, Any]
    config: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    error: float = 0.0
    why_not: str = ""
    told: bool = True

    @property
    def holds(self) -> bool:
        return not self.why_not

    def document(self) -> dict[str, Any]:
        return {
            "library": LIBRARY,
            "architecture": self.architecture,
            "from_pretrained": self.holds,
            "changed": {name: list(pair) for name, pair in self.changed.items()},
            "renumbered": {gap.path: list(gap.kept) for gap in self.gaps},
            "error": self.error,
            "why_not": self.why_not,
        }


def stock_of(
    original: nn.Module, graph_module: GraphModule, inputs: Inputs | None, tokens: Mapping[int, int] | None = None
) -> Stock | None:
    """Whether `original`'s class can take what `graph_module` became; None where it is not one of transformers' own.

    original  the module the graph was captured from
    inputs    example inputs of the graph, on which outputs are compared; None where it maps ids that the class does not
    tokens    old id → new id of the tokens that are left, where they were renumbered
    """
    library = sys.modules.get(LIBRARY)
    if library is None or not isinstance(original, library.PreTrainedModel):
        return None
    name, before = type(original).__name__, _config(original)
    config = before if tokens is None else renumbered_tokens(before, tokens)
    if not type(original).__module__.startswith(f"{LIBRARY}."):
        why_not = f"`{name}` is not a class of {LIBRARY} itself"
        return Stock(name, before, config, why_not=why_not, told=False)
    if inputs is None:
        return Stock(name, before, config, why_not="the model maps the ids of its tokens itself", told=False)
    tensors, wanted = _left(original, graph_module)
    search = Search(lambda fields: _built(original, fields).state_dict(), config, wanted)
    best = _best(original, search, config, tensors, graph_module, inputs)
    found = apply(config, best.fields) if best else config
    changed = _changed(before, found)
    if best and best.holds:
        return Stock(name, before, found, changed, wanted.gaps, best.error)
    why_not = f"{_shown(changed)}: {best}" if best else _reason(search)
    silent = loaded(original, config, tensors, strict=False) is not None
    return Stock(name, before, config, error=best.error if best else 0.0, why_not=why_not, told=not silent)


def _shown(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {before} → {after}" for name, (before, after) in changed.items()) or "the config as it is"


def _left(original: nn.Module, graph_module: GraphModule) -> tuple[dict[str, Tensor], Wanted]:
    """The tensors of the cut model's state, counted without gaps, and their shapes, by every name that is tied."""
    state = original.state_dict()
    left = {name: (kind, tensor) for name, (kind, tensor) in collect(graph_module).items()}
    missing = gaps(state, (name for name in left if name in state))
    tensors = {
        renumbered(name, missing): tensor
        for name, (kind, tensor) in left.items()
        if name in state or kind == "parameter"
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for names in _tied(state, missing):
        known = next((shapes[name] for name in names if name in shapes), None)
        shapes |= dict.fromkeys(names, known) if known is not None else {}
    return tensors, Wanted(shapes, missing)


@dataclass(frozen=True)
class Answer:
    """A config that fits in shape, and how far its outputs are off."""

    error: float
    fields: Fields
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"its outputs differ by {self.error:.1e} of the largest, more than {self.tolerance:.0e}"


def _config(original: nn.Module) -> dict[str, Any]:
    """config.json as the library itself would write it."""
    document = json.loads(original.config.to_json_string(use_diff=False))
    dtype = str(next(original.parameters()).dtype).removeprefix("torch.")
    return document | {"architectures": [type(original).__name__], "dtype": dtype}


def _built(original: nn.Module, fields: Mapping[str, Any]) -> nn.Module:
    return type(original)(_read(original, fields))


def _read(original: nn.Module, document: Mapping[str, Any]) -> Any:
    """The configuration that a config.json stands for."""
    return type(original.config).from_dict(_numbers(dict(document)))


def _numbers(value: Any) -> Any:
    """What JSON has no numbers for, infinities, is written as an object by the library."""
    if isinstance(value, dict):
        special = value.get("__float__") if len(value) == 1 else None
        return {key: _numbers(each) for key, each in value.items()} if special is None else float(special)
    return [_numbers(each) for each in value] if isinstance(value, list) else value


def _tied(state: Mapping[str, Tensor], missing: Iterable[Gap]) -> Iterable[list[str]]:
    """Names of one and the same tensor, numbered as the bundle numbers them."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        groups.setdefault(key if tensor.numel() else name, []).append(renumbered(name, missing))
    return [names for names in groups.values() if len(names) > 1]


@torch.no_grad()
def _best(
    original: nn.Module,
    search: Search,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    graph_module: GraphModule,
    inputs: Inputs,
) -> Answer | None:
    """The config whose class, with the cut model's tensors, gives outputs nearest to the graph's."""
    ours = tensors_of(call(graph_module, inputs))
    dtype = next((output.dtype for output in ours if output.is_floating_point()), torch.float32)
    found: list[tuple[float, int, Fields]] = []
    for fields in search.answers():
        error = _error(original, apply(config, fields), tensors, ours, inputs)
        if error is not None:
            found.append((error, len(found), fields))
        if error == 0 or len(found) >= MOST_ANSWERS:
            break
    if not found:
        return None
    error, _, fields = min(found, key=lambda each: each[:2])
    return Answer(error, fields, ROUNDING.get(dtype, ROUNDING[torch.bfloat16]))


def _error(
    original: nn.Module, config: dict[str, Any], tensors: Mapping[str, Tensor], ours: list[Tensor], inputs: Inputs
) -> float | None:
    """Largest difference over largest output; None where the class leaves out or makes up a tensor."""
    module = loaded(original, config, tensors)
    if module is None:
        return None
    theirs = tensors_of(call(module, inputs))
    if [tuple(each.shape) for each in ours] != [tuple(each.shape) for each in theirs]:
        return None
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    scale = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / (scale or 1.0)


def loaded(
    original: nn.Module, config: dict[str, Any], tensors: Mapping[str, Tensor], *, strict: bool = True
) -> nn.Module | None:
    """The library's own loading, from tensors at hand instead of files; nothing is copied. None where it refuses, and
    if `strict` where it makes up or leaves out a tensor."""
    made = type(original)
    read = _read(original, config)
    read._attn_implementation = original.config._attn_implementation
    dtype = next(original.parameters()).dtype
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    try:
        with _silent():
            module, info = made.from_pretrained(
                None, config=read, state_dict=state, dtype=dtype, output_loading_info=True
            )
    except Exception:  # whatever a class raises for tensors that do not fit it
        return None
    faults = ("missing_keys", "mismatched_keys", "error_msgs", "unexpected_keys")
    return None if strict and any(info[key] for key in faults) else module.eval()


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields that differ, by dotted path."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            found |= _changed(old, value, f"{path}{key}.")
        elif value != old:
            found[path + key] = old, value
    return found


def _reason(search: Search) -> str:
    if not search.nearest:
        return "its class cannot be built with any config that was tried"
    first, shapes = search.nearest[0], search.wanted.shapes
    if not first.old or not first.new:
        return str(first)
    alike = [name for name in shapes if _alike(name) == _alike(first.name)]
    other = next((name for name in alike if shapes[name] != shapes[first.name]), None)
    if other:
        sizes = [f"`{name}` is {list(shapes[name])}" for name in (other, first.name)]
        return f"widths differ from layer to layer ({', '.join(sizes)}), and its config knows one for all"
    return f"{first} instead of {first.old}, and no field of its config says that alone"


def _alike(name: str) -> str:
    return ".".join("*" if word.isdigit() else word for word in name.split("."))


class _silent:
    """The library draws bars and warns while it loads; what matters of it is in what it returns."""

    def __enter__(self) -> None:
        logging = sys.modules[LIBRARY].utils.logging
        self.level, self.bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *raised: object) -> None:
        logging = sys.modules[LIBRARY].utils.logging
        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()
