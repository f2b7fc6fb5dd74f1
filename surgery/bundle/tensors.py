"""The tensors of a module: what each is, and which are one and the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.bundle.arguments import same_device
from surgery.bundle.faults import TENSOR, UNSTORABLE
from surgery.diagnostics import BundleError

KINDS = ("parameter", "buffer", "constant")
STORED = frozenset(
    getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    ]
)


@dataclass(frozen=True)
class Entry:
    """One row of the tensor table. A constant is a tensor that is not part of the module's state.

    `tied` names the tensor that this one is; `strides` is kept where memory order is not the usual one, because
    kernels, and with them the last bits of a result, depend on it. `device` is kept where it is not the model's.
    """

    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    requires_grad: bool = False
    tied: str = ""
    strides: tuple[int, ...] = ()
    device: torch.device | None = None


def collect(module: GraphModule) -> dict[str, tuple[str, Tensor]]:
    """Name → (kind, tensor) of all a module holds: its state in its own order, then the constants by name."""
    found: dict[str, tuple[str, Tensor]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in part._parameters.items():
            if tensor is not None:
                found[prefix + name] = ("parameter", tensor)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                kind = "constant" if name in part._non_persistent_buffers_set else "buffer"
                found[prefix + name] = (kind, tensor)
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in found:
            found[node.target] = ("constant", _attribute(module, node.target))
    constants = sorted(name for name, (kind, _) in found.items() if kind == "constant")
    return {name: row for name, row in found.items() if row[0] != "constant"} | {
        name: found[name] for name in constants
    }


def _attribute(module: nn.Module, target: str) -> Tensor:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Tensor):
        return value
    what = "a graph inside the graph" if isinstance(value, nn.Module) else f"a {type(value).__name__}"
    raise BundleError(
        f"`{target}` is {what}, and a bundle holds tensors only",
        code=UNSTORABLE,
        help="take `torch.autocast`, `torch.enable_grad`, `torch.cond` and loops over tensors out of the forward",
    )


def entries(tensors: Mapping[str, tuple[str, Tensor]], home: torch.device) -> dict[str, Entry]:
    """The table of the tensors of a model on device `home`. Raises BundleError for a tensor that safetensors cannot hold."""
    table: dict[str, Entry] = {}
    owners: dict[Any, str] = {}
    for name, (kind, tensor) in tensors.items():
        _storable(name, tensor)
        owner = owners.setdefault((_identity(tensor), kind), name)
        table[name] = Entry(
            kind,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.requires_grad and kind == "parameter",
            "" if owner == name else owner,
            _strides(tensor),
            None if same_device(tensor.device, home) else tensor.device,
        )
    return table


def _identity(tensor: Tensor) -> Any:
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    if tensor.is_contiguous() or not fills(tuple(tensor.shape), tensor.stride()):
        return ()
    return tensor.stride()


def fills(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the strides are a permutation of the usual ones, so that they reach exactly the tensor's own memory."""
    if len(shape) != len(strides):
        return False
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return True


def _storable(name: str, tensor: Tensor) -> None:
    problem = ""
    if tensor.device.type == "meta":
        problem, cure = "has no data: it is on the meta device", "load the model's weights before saving"
    elif type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided:
        problem, cure = f"is a {type(tensor).__name__} ({tensor.layout})", "make it an ordinary dense tensor"
    elif tensor.dtype not in STORED:
        dtype = str(tensor.dtype).removeprefix("torch.")
        problem, cure = f"has dtype {dtype}, which a bundle does not hold", "store real and imaginary parts apart"
        if not tensor.dtype.is_complex:
            cure = "convert it to a floating-point or integer dtype"
    if problem:
        raise BundleError(f"tensor `{name}` {problem}", code=TENSOR, help=cure)
