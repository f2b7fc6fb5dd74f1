"""Tracing a model whose equal blocks are traced once: the first between two marks, the others as one node each."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from itertools import starmap
from threading import RLock
from types import ModuleType
from typing import Any

import torch
from torch import nn, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from surgery.anatomy.repeats.blocks import ABSENT, Block, Group, Place, PLAIN, unchanged

DESCRIBE = "_extract_tensor_metadata"
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)

LIBRARY = torch.library.Library("surgery_capture", "FRAGMENT")
LIBRARY.define("mark(Tensor[] tensors, int call, bool enters) -> ()")
LIBRARY.define("again(Tensor[] tensors, int call, int block) -> Tensor[]")
MARK = torch.ops.surgery_capture.mark.default
AGAIN = torch.ops.surgery_capture.again.default
torch.fx.node.has_side_effect(MARK)


class Untold(Exception):
    """It cannot be told whether two calls are alike."""


class Unlike(Exception):
    """Blocks that were taken to be equal are not."""


def call_of(arguments: tuple) -> tuple[Hashable, list[Tensor]]:
    """What of a call is compared, its modes and its arguments, and its tensors."""
    tensors: list[Tensor] = []
    key = _key(arguments, tensors)
    if not tensors:
        raise Untold
    kinds = {tensor.device.type for tensor in tensors}
    kinds = sorted(filter(torch.amp.is_autocast_available, kinds))
    casts = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
    return (key, casts, torch.is_grad_enabled(), torch.get_default_dtype()), tensors


def _key(value: Any, tensors: list[Tensor]) -> Hashable:
    if isinstance(value, FakeTensor):
        place = next((place for place, each in enumerate(tensors) if each is value), None)
        if place is not None:
            return "the tensor", place
        tensors.append(value)
        sizes = tuple(map(_size, (*value.shape, *value.stride(), value.storage_offset())))
        flags = value.requires_grad, value.is_conj(), value.is_neg()
        return "a tensor", sizes, value.dtype, value.device, value.layout, *flags
    if isinstance(value, tuple | list):
        return type(value), *(_key(each, tensors) for each in value)
    if type(value) in (dict, OrderedDict):
        return type(value), *((_key(name, tensors), _key(each, tensors)) for name, each in value.items())
    if isinstance(value, SYMBOLS):
        return "a size", _size(value)
    if isinstance(value, PLAIN):
        return type(value), repr(value)
    raise Untold


def _size(size: Any) -> Hashable:
    """A size as an expression of free sizes."""
    if not isinstance(size, SYMBOLS):
        return size
    if free_unbacked_symbols(size):
        raise Untold
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def _leaves(result: list, given: list[Tensor], made: list[Tensor]) -> Iterator[tuple[str, Any]]:
    """What each leaf of a result is; the tensors that are new are added to `made`. One that is a view of another is new
    too: what is made of it is made by the same nodes."""
    for leaf in result:
        if isinstance(leaf, FakeTensor):
            yield _leaf(leaf, given, made)
        elif isinstance(leaf, PLAIN) or isinstance(leaf, SYMBOLS) and not free_unbacked_symbols(leaf):
            yield "plain", leaf
        else:
            raise Untold


def _leaf(leaf: FakeTensor, given: list[Tensor], made: list[Tensor]) -> tuple[str, Any]:
    for kind, known in (("given", given), ("made", made)):
        for place, each in enumerate(known):
            if each is leaf:
                return kind, place
    _key(leaf, [])
    if leaf.layout != torch.strided or leaf.is_conj() or leaf.is_neg():
        raise Untold
    made.append(leaf)
    return "made", len(made) - 1


@dataclass(frozen=True)
class Record:
    """A block that was traced: how it was called, what it read of itself and what it gave."""

    number: int
    block: Block
    key: Hashable
    reads: frozenset[Place]
    made: list[tuple]
    """Shape, strides, offset, dtype and device of each tensor it made."""
    leaves: list[tuple[str, Any]]
    """("made", place), ("given", place) or ("plain", value) for each leaf of what it returned."""
    spec: pytree.TreeSpec


class _Spy:
    """Stands in a class for an attribute that differs among its instances, and notes who reads it."""

    def __init__(self, name: str, before: Any, noted: Callable[[Any, str], None]):
        self.name, self.before, self.noted = name, before, noted

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is not None:
            self.noted(instance, self.name)
            if self.name in vars(instance):
                return vars(instance)[self.name]
        if self.before is ABSENT:
            raise AttributeError(self.name)
        return self.before.__get__(instance, owner) if hasattr(self.before, "__get__") else self.before

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value

    def __delete__(self, instance: Any) -> None:
        vars(instance).pop(self.name)


class Tracing:
    """The blocks of a model that may be equal, and what was traced of them.

    Only blocks that are expected to be traced show their tensors meanwhile: torch.export looks at every tensor many
    times. `surprise` is a block that had to be traced and did not show them, and `hopeless` says that this will be so
    of its whole group.
    """

    def __init__(self, model: nn.Module, groups: list[Group], unlike: set[str], first: int):
        """unlike: names of blocks that are known to be like none before them; first: how many of a sort may be."""
        self.model, self.groups = model, groups
        self.blocks = [block for group in groups for block in group.blocks]
        self.places = {id(block.module): place for place, block in enumerate(self.blocks)}
        self.group_of = [group for group in groups for _ in group.blocks]
        self.like = {
            self.places[id(block.module)]: self.places[id(sort[0].module)]
            for group in groups
            for sort in group.likely
            for block in sort[first:]
            if block.name not in unlike
        }
        """The place of each hidden block, and that of the block it is expected to be like."""
        self.records: list[Record | None] = []
        self.called: set[int] = set()
        self.surprise: Block | None = None
        self.hopeless = False
        self.reading: list[tuple[dict[int, str], set[Place]]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, calls of blocks come here first, reads of attributes that differ are noted, and tensors are hidden.
        Nor does torch describe each tensor a second time: nothing here reads that, and it takes a twentieth of the
        time."""
        silent = (proxy_tensor, DESCRIBE, lambda *_, **__: None)
        with _LOCK, ExitStack() as undo:
            for owner, name, value in (*self._spies(), *self._forwards(), silent):
                undo.callback(_put, owner, name, vars(owner).get(name, ABSENT))
                setattr(owner, name, value)
            for place in self.like:
                for module in self.blocks[place].modules.values():
                    for name in ("_parameters", "_buffers"):
                        undo.callback(vars(module).__setitem__, name, vars(module)[name])
                        vars(module)[name] = {}
            _RUNNING.append(self)
            undo.callback(_RUNNING.pop)
            yield

    def _forwards(self) -> Iterator[tuple[type, str, Callable]]:
        for owner in dict.fromkeys(type(block.module) for block in self.blocks):
            yield owner, "forward", self._seen(owner.forward)

    def _seen(self, forward: Callable) -> Callable:
        @wraps(forward)
        def seen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._forward(partial(forward, module), module, args, kwargs)

        return seen

    def _spies(self) -> Iterator[tuple[type, str, _Spy]]:
        for owner, name in dict.fromkeys(place for group in self.groups for place in group.owners):
            yield owner, name, _Spy(name, getattr(owner, name, ABSENT), self._noted)

    def _noted(self, module: Any, name: str) -> None:
        for paths, reads in self.reading:
            if id(module) in paths:
                reads.add((paths[id(module)], name))

    def _forward(self, original: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        place = self.places.get(id(module))
        if place is None or place in self.called and place not in self.like:
            return original(*args, **kwargs)
        block, again = self.blocks[place], place in self.called
        self.called.add(place)
        try:
            key, given = call_of((args, kwargs))
        except Untold:
            key = None
        if key is None or again or block.hooked or block.altered:
            self._expect(block, hopeless=True)
            return original(*args, **kwargs)
        for record in self._traced_like(place):
            if record.key == key and all(record.block.agrees(block, where) for where in record.reads):
                return self._repeated(record, place, given)
        numbers = self.group_of[place].numbers
        self._expect(block, hopeless=any(record.reads & numbers for record in self._traced_like(place)))
        return self._traced(block, key, given, original, args, kwargs)

    def _traced_like(self, place: int) -> Iterator[Record]:
        """What was traced of the group of the block at `place`."""
        for record in filter(None, self.records):
            if self.group_of[self.places[id(record.block.module)]] is self.group_of[place]:
                yield record

    def _expect(self, block: Block, *, hopeless: bool) -> None:
        """Raise Unlike where a block that hides its tensors would have to be traced."""
        if self.places[id(block.module)] in self.like:
            self.surprise, self.hopeless = block, hopeless
            raise Unlike(f"{block.name} is unlike those before it")

    def _repeated(self, record: Record, place: int, given: list[Tensor]) -> Any:
        made = AGAIN(given, record.number, place)
        parts = {"made": made.__getitem__, "given": given.__getitem__, "plain": lambda value: value}
        return pytree.tree_unflatten([parts[kind](what) for kind, what in record.leaves], record.spec)

    def _traced(
        self, block: Block, key: Hashable, given: list[Tensor], original: Callable, args: tuple, kwargs: dict
    ) -> Any:
        """Trace a block between two marks, and keep what it takes to repeat it, where it can be repeated."""
        number, before = len(self.records), block.state()
        self.records.append(None)
        known = [*given, *block.module.parameters(), *block.module.buffers()]
        versions = [each._version for each in known]
        reads: set[Place] = set()
        MARK(given, number, True)
        self.reading.append(({id(module): path for path, module in block.modules.items()}, reads))
        try:
            result = original(*args, **kwargs)
        finally:
            self.reading.pop()
        leaves, spec = pytree.tree_flatten(result)
        made: list[Tensor] = []
        try:
            kinds = list(_leaves(leaves, given, made))
            same = call_of((args, kwargs))[0] == key and unchanged(before, block.state())
            same = same and versions == [each._version for each in known]
        except Untold:
            return result
        if same and made:
            MARK(made, number, False)
            forms = [(each.shape, each.stride(), each.storage_offset(), each.dtype, each.device) for each in made]
            self.records[number] = Record(number, block, key, frozenset(reads), forms, kinds, spec)
        return result


def _put(owner: type | ModuleType, name: str, value: Any) -> None:
    if value is ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


_LOCK = RLock()
"""Classes are changed meanwhile, which one thread may do at a time."""
_RUNNING: list[Tracing] = []


def _fake_again(tensors: list[Tensor], call: int, block: int) -> list[Tensor]:
    return list(starmap(_empty, _RUNNING[-1].records[call].made))


def _empty(shape: tuple, stride: tuple, offset: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(offset, int) and not offset:
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.empty(last + 1, dtype=dtype, device=device).as_strided(shape, stride, offset)


torch.library.register_fake("surgery_capture::mark", lambda tensors, call, enters: None, lib=LIBRARY)
torch.library.register_fake("surgery_capture::again", _fake_again, lib=LIBRARY)
