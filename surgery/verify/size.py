"""What a model weighs: parameters, bytes, and the floating-point operations of a forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from surgery.plan.size import distinct

COUNTED = (
    "multiply-adds of linear layers, matrix products, convolutions and attention, two operations each; elementwise "
    "operations, norms, softmax and table look-ups are not counted"
)


@dataclass(frozen=True)
class Size:
    """Parameters (a tied one once), bytes of parameters and buffers, FLOPs per sample (see `COUNTED`)."""

    parameters: int
    bytes: int
    flops: int


def size(module: nn.Module, inputs: tuple | dict[str, Any], *, samples: int = 1) -> Size:
    """Parameters, bytes and FLOPs per sample of `module`; `samples` is the batch size of `inputs`."""
    return Size(parameters(module), weight_bytes(module), flops(module, inputs, samples=samples))


def parameters(module: nn.Module) -> int:
    """Entries of all parameters, a tied one once."""
    return sum(tensor.numel() for tensor in distinct(module.parameters()))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, a tied one once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct((*module.parameters(), *module.buffers())))


def flops(module: nn.Module, inputs: tuple | dict[str, Any], *, samples: int = 1) -> int:
    """FLOPs of one forward pass divided by `samples`, as `COUNTED` says; works on the meta device too."""
    counter = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: cpu_attention_flops})
    counter.mod_tracker = _Whole()
    with torch.no_grad(), counter:
        module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return counter.get_total_flops() // samples


class _Whole(ModuleTracker):
    """All is counted in one place: the hooks that tell modules apart fail where a module is called with a parameter."""

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing was hooked."""


CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def cpu_attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    """torch's own table leaves out attention's CPU operator; the formula is that of the others."""
    return sdpa_flop_count(query_shape, key_shape, value_shape)
