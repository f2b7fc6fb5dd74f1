"""Do these arguments fit this operator? Checked when a bundle is read, so a bad file fails there and says where."""

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from surgery.bundle.faults import ARGUMENTS
from surgery.bundle.operators import PythonOperator
from surgery.diagnostics import BundleError

NUMBER = (bool, int, float)
# What a value may be, by the kind of the schema's type. A tensor may be written as a number: torch wraps it.
KINDS: dict[str, tuple[type, ...]] = {
    "TensorType": (Node, *NUMBER),
    "IntType": (Node, int),
    "SymIntType": (Node, int),
    "FloatType": (Node, int, float),
    "SymFloatType": (Node, int, float),
    "BoolType": (Node, bool),
    "SymBoolType": (Node, bool),
    "NumberType": (Node, *NUMBER),
    "StringType": (str,),
    "DeviceObjType": (torch.device,),
    "ScalarTypeType": (torch.dtype,),
    "LayoutType": (torch.layout,),
    "MemoryFormatType": (torch.memory_format,),
}


def check_call(operator: OpOverload | PythonOperator, name: str, args: tuple, kwargs: dict, place: str) -> None:
    """Raises BundleError, naming the node and the argument, where a call does not fit its operator."""
    if isinstance(operator, PythonOperator):
        _check_python(operator, name, args, kwargs, place)
    else:
        _check_schema(operator, name, args, kwargs, place)


def _check_python(operator: PythonOperator, name: str, args: tuple, kwargs: dict, place: str) -> None:
    if kwargs:
        raise _unfit(place, f"`{name}` takes no keyword arguments")
    if not operator.least <= len(args) <= operator.most:
        raise _unfit(place, f"`{name}` takes {operator.least} to {operator.most} arguments, got {len(args)}")
    for value in args:
        if value is not None and not isinstance(value, (Node, *NUMBER)):
            raise _unfit(place, f"`{name}` takes nodes and numbers, got {_shown(value)}")
    if name == "operator.getitem" and not (isinstance(args[0], Node) and type(args[1]) is int):
        raise _unfit(place, "`operator.getitem` takes a node and an index")


def _check_schema(operator: OpOverload, name: str, args: tuple, kwargs: dict, place: str) -> None:
    parameters = operator._schema.arguments
    positional = [parameter for parameter in parameters if not parameter.kwarg_only]
    if len(args) > len(positional):
        raise _unfit(place, f"`{name}` takes at most {len(positional)} positional arguments, got {len(args)}")
    given = dict(zip((parameter.name for parameter in positional), args, strict=False))
    twice = given.keys() & kwargs.keys()
    unknown = kwargs.keys() - {parameter.name for parameter in parameters}
    if twice or unknown:
        raise _unfit(place, f"`{name}` has no place for the keyword `{min(twice | unknown)}`")
    given |= kwargs
    for parameter in parameters:
        if parameter.name not in given:
            if not parameter.has_default_value():
                raise _unfit(place, f"`{name}` lacks its argument `{parameter.name}`")
        elif not _fits(parameter.real_type, parameter.N, given[parameter.name]):
            wanted = parameter.real_type.annotation_str
            raise _unfit(place, f"`{name}` wants {wanted} for `{parameter.name}`, got {_shown(given[parameter.name])}")


def _fits(kind: Any, size: int | None, value: Any) -> bool:
    if kind.kind() == "OptionalType":
        return value is None or _fits(kind.getElementType(), size, value)
    if kind.kind() != "ListType":
        return _is_a(kind.kind(), value)
    element = kind.getElementType()
    if isinstance(value, list | tuple):
        return all(_fits(element, None, item) for item in value)
    # `int[2]` takes one number for both; a node may stand for a whole list of tensors.
    return isinstance(value, Node) or (size is not None and _fits(element, None, value))


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, bool) and kind in ("IntType", "SymIntType", "FloatType", "SymFloatType"):
        return False
    return isinstance(value, KINDS.get(kind, ()))


def _shown(value: Any) -> str:
    text = f"%{value.name}" if isinstance(value, Node) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unfit(place: str, message: str) -> BundleError:
    return BundleError(
        f"{place}: {message}",
        code=ARGUMENTS,
        help="the graph was edited, or written for another version of torch: write the bundle again",
    )
