"""A second device, played on the CPU: what would meet a tensor of another device on a GPU is refused here too.

    with Elsewhere():
        module.to(ELSEWHERE)       its tensors say that they are on `cuda:0`; their numbers stay on the CPU

A tensor is there if it was put there, was made there, or came of one that is. As on a GPU an operator takes tensors of one
device, but for single numbers and for places to look up, and NumPy reads none that is there. What runs inside of an
operator is not watched, and PyTorch's own files are told the truth. Capture is not played: `recorded` makes a graph as if it
had been captured there.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

ELSEWHERE, HERE = torch.device("cuda:0"), torch.device("cpu")
EITHER = {"__getitem__", "__setitem__", "index.Tensor", "copy_", "backward", "_has_compatible_shallow_copy_type"}
"""Operators that take tensors of both: places to look up may be on the CPU."""
_generator, _new_parameter, _device_of_fake = torch.Generator, torch.nn.Parameter.__new__, FakeTensor.device
TORCH = str(Path(torch.__file__).parent)

PLAYED = property(lambda fake: _device_of_fake.fget(fake) if _asked_by_torch(2) else ELSEWHERE)


class Elsewhere(TorchFunctionMode):
    def __enter__(self) -> "Elsewhere":
        torch.Generator = _Generator
        torch.nn.Parameter.__new__ = _parameter
        FakeTensor.device = PLAYED
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.Generator = _generator
        torch.nn.Parameter.__new__ = _new_parameter
        FakeTensor.device = _device_of_fake
        super().__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        special = next((answer for known, answer in SPECIAL.items() if func == known), None)
        if special is not None:
            return special(func, *args, **kwargs)
        name = getattr(func, "__name__", "")
        named = kwargs.get("device")
        if named is not None:
            kwargs["device"] = HERE if _is_elsewhere(named) else named
        elif not name.startswith("__"):
            _refuse_mixed(name, args, kwargs)
        inherited = any(map(is_there, _tensors((args, kwargs))))
        return _marked(func(*args, **kwargs), inherited if named is None else _is_elsewhere(named))


class _Generator(_generator):
    """One of that device draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _generator(HERE if _is_elsewhere(device) else device)


def _parameter(cls: type, data: Any = None, *rest: Any, **named: Any) -> Any:
    made = _new_parameter(cls, data, *rest, **named)
    return _marked(made, isinstance(data, Tensor) and is_there(data))


def is_there(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or getattr(tensor, "_elsewhere", False)


def recorded(trace: Callable[..., GraphModule], *given: Any) -> GraphModule:
    """The graph that `trace` makes, as if it had been captured there."""
    FakeTensor.device = _device_of_fake
    with torch._C.DisableTorchFunction():
        made = trace(*given)
    FakeTensor.device = PLAYED
    for node in made.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = node.kwargs | {"device": ELSEWHERE}
        node.args = tuple(ELSEWHERE if isinstance(each, torch.device) else each for each in node.args)
    return made


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


def _is_elsewhere(device: Any) -> bool:
    return torch.device(device).type == ELSEWHERE.type


def _marked(made: Any, there: bool) -> Any:
    for tensor in _tensors(made):
        tensor._elsewhere = there
    return made


def _refuse_mixed(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    wide = [tensor for tensor in _tensors((args, kwargs)) if tensor.dim() or is_there(tensor)]
    if any(isinstance(tensor, FakeTensor) for tensor in wide):
        return
    if name not in EITHER and len({is_there(tensor) for tensor in wide}) > 1:
        raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU: {[(list(t.shape), is_there(t)) for t in wide]}")


def _device(func: Callable, tensor: Tensor, *rest: Any) -> torch.device:
    return ELSEWHERE if is_there(tensor) and not _asked_by_torch() else func(tensor, *rest)


def _asked_by_torch(depth: int = 3) -> bool:
    return sys._getframe(depth).f_code.co_filename.startswith(TORCH)


def _is_cuda(func: Callable, tensor: Tensor, *rest: Any) -> bool:
    return is_there(tensor)


def _set_data(func: Callable, tensor: Tensor, data: Tensor) -> None:
    func(tensor, data)
    tensor._elsewhere = is_there(data)


def _grad(func: Callable, tensor: Tensor, *rest: Any) -> Tensor | None:
    return _marked(func(tensor, *rest), is_there(tensor))


def _cpu(func: Callable, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
    return _marked(tensor.clone(), False)


def _cuda(func: Callable, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
    return _marked(tensor.clone(), True)


def _numpy(func: Callable, tensor: Tensor, *rest: Any, **named: Any) -> Any:
    if is_there(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return func(tensor, *rest, **named)


def _to(func: Callable, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
    """A copy where it moves, as on a GPU."""
    places = [*rest, *named.values()]
    wanted = [is_there(each) for each in places if isinstance(each, Tensor)]
    wanted += [_is_elsewhere(each) for each in places if isinstance(each, torch.device | str)]
    there = wanted[0] if wanted else is_there(tensor)
    rest = tuple(HERE if isinstance(each, torch.device | str) else each for each in rest)
    named = {key: HERE if key == "device" and each is not None else each for key, each in named.items()}
    made = func(tensor, *rest, **named)
    return _marked(made.clone() if made is tensor and there != is_there(tensor) else made, there)


SPECIAL: dict[Any, Callable] = {
    Tensor.device.__get__: _device,
    Tensor.is_cuda.__get__: _is_cuda,
    Tensor.data.__set__: _set_data,
    Tensor.grad.__get__: _grad,
    Tensor.cpu: _cpu,
    Tensor.cuda: _cuda,
    Tensor.numpy: _numpy,
    Tensor.to: _to,
    torch.ops.aten.to.device: _to,
    torch.ops.aten.to.dtype_layout: _to,
}
