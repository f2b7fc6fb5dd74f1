"""Peak memory of a forward pass: the module's own tensors, its inputs and the most that lived beside them."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WHAT = "peak of live tensors in a forward pass, parameters included"


def peak_memory(module: nn.Module, inputs: tuple | dict[str, Any]) -> int:
    """Bytes of live tensors at the worst moment of one forward pass without gradients.

    Parameters, buffers and inputs are included, a storage shared by several tensors counts once, other models in the
    process do not count. On a GPU the transient part is what the allocator handed out, so that workspaces of kernels
    show too; on a CPU it is the storages of tensors that operators returned, and a workspace inside one operator
    does not show.
    """
    own = [*module.parameters(), *module.buffers(), *tensors_of(inputs)]
    on_gpu = next((tensor.device for tensor in own if tensor.is_cuda), None)
    if on_gpu is None:
        return peak_of_storages(module, inputs, own)
    return peak_of_allocator(module, inputs, own, on_gpu)


def peak_of_allocator(module: nn.Module, inputs: Any, own: Iterable[Tensor], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward(module, inputs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + sum(bytes_by_storage(own).values())


def peak_of_storages(module: nn.Module, inputs: Any, own: Iterable[Tensor]) -> int:
    with LiveStorages(own) as live:
        forward(module, inputs)
    return live.peak


def forward(module: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        module(**inputs) if isinstance(inputs, dict) else module(*inputs)


class LiveStorages(TorchDispatchMode):
    """Follows the storages that operators return until they are freed; `peak` is the most bytes alive at once."""

    def __init__(self, resident: Iterable[Tensor] = ()):
        super().__init__()
        self.alive: dict[int, tuple[weakref.ref, int]] = {}
        self.now = self.peak = 0
        for tensor in resident:
            self.follow(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of(out):
            self.follow(tensor)
        return out

    def follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        size = storage.nbytes()
        self.alive[key] = (weakref.ref(storage, lambda _, key=key: self.forget(key)), size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)[1]


def bytes_by_storage(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storage identity → its bytes, each storage once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
