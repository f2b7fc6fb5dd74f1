"""Blocks that may be equal: what tells one from another, seen from outside."""

import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from itertools import combinations
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn.modules import module as module_hooks

AT_LEAST = 3
"""Fewer blocks are not worth the look."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), Enum)
PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format)
OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
ABSENT = object()
Place = tuple[str, str]
"""An attribute: the path of its module within the block, and its name."""


@dataclass(frozen=True)
class Block:
    """A block as seen from outside: whatever tells it from another."""

    name: str
    module: nn.Module

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.module.named_modules())

    @cached_property
    def tensors(self) -> dict[str, Tensor | None]:
        """Parameters and buffers by name, all names of a tied one."""
        return dict(tensors_of(self.modules))

    @cached_property
    def form(self) -> Hashable:
        """Classes and modes, and the tensors' names, shapes and ties."""
        first: dict[int, int] = {}
        classes = tuple((path, type(module), module.training) for path, module in self.modules.items())
        tensors = tuple(
            (name, None if each is None else (*_kept(each), first.setdefault(id(each), place)))
            for place, (name, each) in enumerate(self.tensors.items())
        )
        return classes, tensors

    @cached_property
    def attributes(self) -> dict[Place, Any]:
        """Whatever its modules hold beside tensors, modules and hooks, by path and name, when first looked at."""
        return dict(self._attributes())

    def _attributes(self) -> Iterator[tuple[Place, Any]]:
        for path, module in self.modules.items():
            for name, value in vars(module).items():
                if name not in OWN and not name.endswith("_hooks"):
                    yield (path, name), value

    @property
    def altered(self) -> bool:
        """Whether someone has set an attribute since."""
        now = dict(self._attributes())
        return len(now) != len(self.attributes) or any(
            self.attributes.get(place, ABSENT) is not value for place, value in now.items()
        )

    @property
    def plain(self) -> bool:
        """Whether its tensors are what they seem."""
        return all(each is None or type(each) in (nn.Parameter, Tensor) for each in self.tensors.values())

    @property
    def hooked(self) -> bool:
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.modules.values())

    def agrees(self, other: "Block", place: Place) -> bool:
        """Whether an attribute is the same in both, or stands for the same in each."""
        return self._equal(self.attributes.get(place, ABSENT), other.attributes.get(place, ABSENT), other)

    def _equal(self, mine: Any, yours: Any, other: "Block") -> bool:
        if mine is yours:
            return True
        if type(mine) is not type(yours):
            return False
        if isinstance(mine, PLAIN):
            return repr(mine) == repr(yours)
        if isinstance(mine, list | tuple):
            return len(mine) == len(yours) and all(map(self._equal, mine, yours, [other] * len(mine)))
        if isinstance(mine, dict):
            return list(mine) == list(yours) and all(self._equal(mine[key], yours[key], other) for key in mine)
        if isinstance(mine, set | frozenset):
            return mine == yours and all(isinstance(each, PLAIN) for each in mine)
        if isinstance(mine, nn.Module):
            path = self._path(mine)
            return path is not None and path == other._path(yours)
        if isinstance(mine, MethodType):
            return mine.__func__ is yours.__func__ and self._equal(mine.__self__, yours.__self__, other)
        if isinstance(mine, partial):
            parts = [(each.func, each.args, each.keywords) for each in (mine, yours)]
            return self._equal(*parts, other)
        return _is_record(mine) and self._equal(vars(mine), vars(yours), other)

    def _path(self, module: nn.Module) -> str | None:
        return next((path for path, each in self.modules.items() if each is module), None)

    def state(self) -> list:
        """What a forward could write, as it is now, to be compared by identity: attributes of the modules, of their
        classes and of the files that define these, with what they hold."""
        kinds = dict.fromkeys(each for module in self.modules.values() for each in type(module).__mro__)
        classes = [each for each in kinds if each.__module__.partition(".")[0] not in ("torch", "builtins")]
        files = dict.fromkeys(each.__module__ for each in classes)
        shelves = [*classes, *(sys.modules[name] for name in files if name in sys.modules)]
        shared = [(each, [_inside(value, 1) for value in vars(each).values()]) for each in shelves]
        return [*(_inside(vars(module), 4) for module in self.modules.values()), *shared]


def _is_record(value: Any) -> bool:
    """Whether an object is what its attributes are, as one of a class written in Python without further ado is."""
    kind = type(value)
    slots = any(getattr(each, "__slots__", ()) for each in kind.__mro__)
    return kind.__new__ is object.__new__ and hasattr(value, "__dict__") and not slots


def tensors_of(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor | None]]:
    """Parameters and buffers of modules by their paths."""
    for path, module in modules.items():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            yield f"{path}.{name}" if path else name, tensor


def _kept(tensor: Tensor) -> tuple:
    """What a parameter or buffer is, its numbers apart."""
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _inside(value: Any, depth: int) -> tuple:
    """A value with what it holds, `depth` levels down; modules and tensors by themselves."""
    if isinstance(value, list | tuple | set | frozenset):
        held = list(value)
    elif isinstance(value, dict):
        held = [*value, *value.values()]
    elif isinstance(value, nn.Module | Tensor | type | FunctionType | MethodType | ModuleType):
        held = []
    else:
        held = list(getattr(value, "__dict__", {}).values())
    return value, [_inside(each, depth - 1) for each in held] if depth else []


def unchanged(before: list | tuple, now: list | tuple) -> bool:
    """Whether two states hold the very same objects."""
    if isinstance(before, list):
        return len(before) == len(now) and all(map(unchanged, before, now))
    return before[0] is now[0] and unchanged(before[1], now[1])


@dataclass(frozen=True)
class Group:
    """Blocks of one form in one container."""

    blocks: list[Block]

    @property
    def name(self) -> str:
        """That of its first block."""
        return self.blocks[0].name

    @cached_property
    def differing(self) -> list[Place]:
        """Attributes that are not equal in all of them."""
        first = self.blocks[0]
        places = dict.fromkeys(place for each in self.blocks for place in each.attributes)
        return [place for place in places if not all(first.agrees(each, place) for each in self.blocks[1:])]

    @cached_property
    def owners(self) -> dict[tuple[type, str], None]:
        """The classes of whose instances those are."""
        modules = self.blocks[0].modules
        return dict.fromkeys((type(modules[path]), name) for path, name in self.differing)

    @cached_property
    def numbers(self) -> set[Place]:
        """Those that no two blocks agree on, such as a layer's number: nothing is alike that reads one."""
        pairs = list(combinations(self.blocks, 2))
        return {place for place in self.differing if not any(one.agrees(other, place) for one, other in pairs)}

    @cached_property
    def likely(self) -> list[list[Block]]:
        """Blocks that agree on all attributes but those, in the order of the first of each sort."""
        sorts: list[list[Block]] = []
        places = [place for place in self.differing if place not in self.numbers]
        for block in self.blocks:
            sort = next((each for each in sorts if all(each[0].agrees(block, place) for place in places)), None)
            if sort is None:
                sorts.append(sort := [])
            sort.append(block)
        return sorts

    def is_promising(self) -> bool:
        """Whether attributes that differ can be watched, being the instances' own, and none is a rate that rises from
        block to block: a forward reads it, though it drops nothing."""
        watched = not any(hasattr(getattr(owner, name, None), "__set__") for owner, name in self.owners)
        return watched and not any(isinstance(self.blocks[0].attributes.get(place), float) for place in self.numbers)


def groups_of(model: nn.Module) -> Iterator[Group]:
    """Blocks that are worth a look: the children of one form in a container, three or more."""
    every = dict(model.named_modules(remove_duplicate=False))
    if len(every) > len(set(map(id, every.values()))) or module_hooks._global_forward_hooks:
        return
    for path, container in every.items():
        if not isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        alike: dict[Hashable, list[Block]] = {}
        for name, child in container.named_children():
            block = Block(f"{path}.{name}" if path else name, child)
            if any(child.children()) and isinstance(type(child).forward, FunctionType) and block.plain:
                alike.setdefault(block.form, []).append(block)
        for blocks in alike.values():
            if len(blocks) >= AT_LEAST and (group := Group(blocks)).is_promising():
                yield group
